"""Exports a checkpoint to a file for other runtimes; written only if it does what the checkpoint does."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from detector.builders.losses import box_std
from detector.checkpoint import find_checkpoint
from detector.evaluation.checkpoint import OpenCheckpoint, open_checkpoint
from detector.export.check import check_detections, check_raw, pictures
from detector.export.formats import FORMATS, OUTPUTS, endings, format_of, refuse_elsewhere, require_packages
from detector.export.graph import DetectionGraph, HeadsGraph
from detector.export.metadata import PROJECT, metadata
from detector.export.probabilities import Probabilities
from detector.output import check_output, temporary_of, write_bytes
from errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """The file written, and the result of the check."""

    file: Path
    outputs: tuple[str, ...]
    check: str  # in words


def export(
    model: Path,
    overrides: Sequence[str],
    form: str | None,
    raw: bool,
    output: Path | None,
    check: Sequence[str],
) -> Report:
    """Write a checkpoint, or best.pt of a run folder, in another format.

    Args:
        form: one of FORMATS; by default from the suffix of the file, else onnx.
        raw: export the outputs of the heads instead of detections.
        output: the file; by default next to the checkpoint. An existing file is replaced if it is an earlier
            export with the suffix of the format.
        check: images to run both on; by default from the validation set.

    Raises:
        InputError: an argument is invalid, or the file would not do what the checkpoint does. Then no file
            is written, and an existing one is kept.
    """
    form = _form_of(output, form)
    require_packages(form)
    source = find_checkpoint(model)
    file = output or source.with_suffix(FORMATS[form].suffix)
    pictures_given = [Path(name) for name in check]
    check_output("--output", file, None, [source, *source.parent.glob("*.pt"), *pictures_given])
    if file.exists() and file.suffix != FORMATS[form].suffix:
        raise InputError(
            f"--output: {file} exists and does not end in {FORMATS[form].suffix}, so it may be something "
            "else; name a file that ends so, or a new one"
        )
    if file.exists() and PROJECT.encode() not in file.read_bytes():  # no format compresses its metadata
        raise InputError(f"--output: {file} exists and is not an earlier export; name another file")
    probe = temporary_of(file)
    try:
        probe.touch()  # before the work, which takes minutes
        probe.unlink()
    except OSError as error:
        raise InputError(f"--output: cannot write {file}: {error.strerror}") from None
    refuse_elsewhere(overrides, "the file is written in float32, on the CPU")
    # On the device and in the precision of the graph.
    checkpoint = open_checkpoint(source, [*overrides, "train.device=cpu", "train.amp=off"])
    if checkpoint.config.eval.flip:
        raise InputError(
            "eval.flip: the file processes each image once; export with eval.flip=false, and average the "
            "--raw outputs for the image and its mirror image yourself, as detector/mirror.py does"
        )
    if (tile := checkpoint.config.eval.tile) is not None:
        log.warning(
            "eval.tile=%d: the file does not cut images; give it tiles, and merge the detections", tile
        )
    given = pictures(checkpoint, check)
    if form == "onnx" and not raw and checkpoint.config.eval.nms == "soft":
        count = checkpoint.config.eval.detections_per_img
        log.warning("exporting Soft-NMS for %d detections takes minutes; eval.nms=hard is fast", count)
    graph = _graph(checkpoint, form, raw)
    kind = "raw" if raw else "detections"
    content = FORMATS[form].make(graph, kind, metadata(checkpoint, raw))
    run = FORMATS[form].read(content)
    if raw:
        found = f"outputs within {check_raw(checkpoint, run, given):.0e} of the largest"
    else:
        a = check_detections(checkpoint, run, given)
        found = f"{a.detections} detections, boxes within {a.box_px:.0e} px, scores within {a.score:.0e}"
    write_bytes(file, content)
    return Report(file, OUTPUTS[kind], found)


def _form_of(output: Path | None, form: str | None) -> str:
    """The requested format, or that of the file's suffix. Raises InputError: they differ or are missing."""
    if output is None:
        return form or "onnx"
    named = format_of(output)
    found = form or named
    if found is None:
        raise InputError(f"--output: {output} does not end in {endings()}; give the format with --format")
    if named not in (None, found):
        raise InputError(f"--output: {output} has the ending of --format {named}, but --format is {form}")
    return found


def _graph(checkpoint: OpenCheckpoint, form: str, raw: bool) -> nn.Module:
    if raw:
        return HeadsGraph(checkpoint.model).eval()
    c = checkpoint
    probabilities = Probabilities(c.calibration)
    return DetectionGraph(
        c.model, box_std(c.config, c.device), probabilities, c.config.eval, FORMATS[form].suppress
    ).eval()
