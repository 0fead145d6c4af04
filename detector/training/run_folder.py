"""The run folder: configuration, metrics, checkpoints and TensorBoard events of one training."""

import contextlib
import json
import logging
import math
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import Timeout

from data.locks import locked
from detector.checkpoint import LAST, PREVIOUS, load_newest
from detector.output import (
    TEMPORARY,
    check_new_folder,
    discard,
    numbered_folders,
    refuse_dead_link,
    sync,
    write_text,
)
from detector.training.launch import Launch
from errors import InputError

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_RUNS = "runs"
_LOCK, _LAUNCH = ".lock", ".launch"


@contextlib.contextmanager
def new_run_folder(wanted: str | None, name: str, config: str) -> Iterator[Path]:
    """A new folder, kept as by `in_use`: `wanted`, or runs/NAME, runs/NAME-2 and so on. A run never
    overwrites another.

    Args:
        config: the text of its config.yaml.

    Raises:
        InputError: the wanted folder holds something already, or cannot be made; nothing is left then.
    """
    with contextlib.ExitStack() as kept:
        yield _begin(wanted, name, config, kept)


def _begin(wanted: str | None, name: str, config: str, kept: contextlib.ExitStack) -> Path:
    if wanted is not None:
        refuse_taken(wanted)
        return _make(Path(wanted), config, False, kept)
    for folder in numbered_folders(Path(_RUNS) / name):
        with contextlib.suppress(FileExistsError):
            return _make(folder, config, True, kept)
    raise AssertionError("unreachable")


def refuse_taken(wanted: str | None) -> None:
    """Raises InputError: the folder that run.dir names, if it names one, holds something already or cannot
    be made; or the one for all runs is a link to nothing."""
    if wanted is None:
        refuse_dead_link("run.dir", Path(_RUNS))
        return
    check_new_folder("run.dir", Path(wanted))
    if Path(wanted).is_dir() and not _is_bare(Path(wanted)):
        raise InputError(
            f"run.dir: {wanted} is not empty; choose another folder, or continue that run with --resume "
            f"{wanted}"
        )


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds no more than a run leaves that is killed before its first file is written."""
    return all(
        path.name == _LOCK
        or (path.name.startswith(".") and path.name.endswith(TEMPORARY))
        or (path.name == "checkpoints" and path.is_dir() and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def repair(folder: Path) -> None:
    """Of a run that is gone on with: make its folder of checkpoints, if it is away, and remove what was left
    half-written.

    Raises:
        InputError: it cannot be written to.
    """
    checkpoints = folder / "checkpoints"
    refuse_dead_link("--resume", checkpoints)  # a disk that is away
    try:
        checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--resume: {checkpoints} cannot be created: {error.strerror}") from None
    for left in (*folder.glob(f".*{TEMPORARY}"), *checkpoints.glob(f".*{TEMPORARY}")):
        discard(left)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process. The system frees it however the process ends.

    Raises:
        InputError: another live process has it, or it cannot be written to.
    """
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(locked(folder / _LOCK, "no other training uses the folder", timeout=0))
    except Timeout:
        raise InputError(
            f"{folder} is in use by another training that is still running; stop it first, or start a new "
            "run with another run.dir"
        ) from None
    except OSError as error:
        raise InputError(
            f"run.dir: {folder} cannot be written to ({error.strerror}); fix that, or choose another folder "
            "(with --resume: continue a copy of the run)"
        ) from None
    with lock:
        yield


def made_with() -> str:
    """A comment for config.yaml: what a run repeats itself to the bit with. A resumed run writes its own."""
    listed, threads = ", ".join(f"{name} {it}" for name, it in versions().items()), torch.get_num_threads()
    return f"# {listed}, {threads} thread{'s' * (threads != 1)}\n"


def versions() -> dict[str, str]:
    """Of what computes."""
    packages = ("torch", "torchvision", "numpy", "albumentations")
    return {name: metadata.version(name) for name in packages} | {"Python": platform.python_version()}


def mark_launch(folder: Path, launch: Launch) -> None:
    """Remember which launch of several processes a run belongs to."""
    write_text(folder / _LAUNCH, launch.mark)


def run_of_launch(wanted: str | None, name: str, launch: Launch) -> Path | None:
    """The run folder that a launch has made before it was restarted: the last, if its name was given twice.

    Args:
        wanted, name: as for `new_run_folder`.
    """
    folders = [Path(wanted)] if wanted is not None else _numbered_so_far(Path(_RUNS) / name)
    own: list[tuple[int, Path]] = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # without a mark, or somebody else's
            mark = folder / _LAUNCH
            if launch.has_made(mark.read_text(encoding="utf-8")):
                own.append((mark.stat().st_mtime_ns, folder))
    return max(own)[1] if own else None


def _numbered_so_far(first: Path) -> list[Path]:
    """Those of `numbered_folders` that are there; some between them may have been deleted."""
    if not first.parent.is_dir():
        return []
    name = re.compile(re.escape(first.name) + r"(-\d+)?")
    return [folder for folder in first.parent.iterdir() if name.fullmatch(folder.name)]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is anything to continue from."""
    return any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))


def _make(folder: Path, config: str, new: bool, kept: contextlib.ExitStack) -> Path:
    """A folder with its config.yaml, which is written last: without it nothing was begun."""
    checkpoints, lock = folder / "checkpoints", folder / _LOCK
    made = [path for path in (lock, checkpoints, folder, *folder.parents) if not path.exists()]
    own = False
    try:
        folder.mkdir(parents=True, exist_ok=not new)
        kept.enter_context(in_use(folder))
        refuse_taken(str(folder))  # what another has begun in it meanwhile
        own = True
        checkpoints.mkdir(exist_ok=True)
        write_text(folder / "config.yaml", config, synced=True)
    except (OSError, InputError) as error:
        if new and os.path.lexists(folder) and isinstance(error, FileExistsError):  # a moment ago, perhaps
            raise
        kept.close()
        _remove([path for path in made if own or path != lock])
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"run.dir: {folder} cannot be written to ({error.strerror}); choose another folder"
        ) from None
    return folder


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # some were not made yet
            path.unlink() if path.name == _LOCK else path.rmdir()


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl; null for numbers that are not finite, which JSON does not have.

    Raises:
        InputError: no permission or no space.
    """
    content = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    try:
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {folder / METRICS}: {error.strerror}") from None


def sync_metrics(folder: Path) -> None:
    """Let the lines so far outlive a power failure, as the checkpoint does that is written next."""
    with contextlib.suppress(OSError):
        sync(folder / METRICS)


def forget_metrics_after(folder: Path, step: int, evaluated: int) -> dict[str, Any] | None:
    """Drop what was logged after the step that a resumed run continues from.

    Args:
        evaluated: the step of the last evaluation that was saved; one of `step` itself that was logged
            and not saved will be made again.

    Returns what was logged of `step` beside such an evaluation, maybe nothing; None without one.
    """
    path = folder / METRICS
    if not path.exists():
        return None
    kept, beside, repeated = [], dict[str, Any](), False
    before = path.read_text(encoding="utf-8", errors="replace")
    for line in before.splitlines():
        try:
            record = json.loads(line)
            if record["step"] > step:
                continue
            if record["step"] == step > evaluated and "AP" in record:
                repeated = True
                continue
            if record["step"] == step:
                beside = record
            kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line cut off when the run was stopped
    after = "".join(line + "\n" for line in kept)
    if after != before:  # that of a long run is large
        write_text(path, after, synced=True)
    return beside if repeated else None


def _edited(written: Path, config: dict[str, Any]) -> str | None:
    """The first key in which the file is not what a checkpoint holds, and what that is; None without one."""
    try:
        content = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, dict):
        return None
    return next((f"{key}={its}" for key, its, _ in changed_keys(config, content)), None)


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The keys of two configurations, as plain values, that differ: section.key, and the value in each."""
    for section, values in before.items():
        others = now.get(section)
        if isinstance(others, dict):
            yield from (
                (f"{section}.{key}", value, others[key])
                for key, value in values.items()
                if key in others and others[key] != value
            )


def measures_otherwise(key: str, before: Any, now: Any) -> bool:
    """Whether AP measured before and after such a change (see `changed_keys`) cannot be compared."""
    for mapping, part in (("data.splits", "val"), ("data.transforms", "eval")):
        if key == mapping:
            return before.get(part) != now.get(part)
    other_numbers = key.startswith("eval.") and key[5:] not in (
        "batch_size",
        "tile_batch_size",
        "backend",
        "calibrate",
    )
    return key == "data.image_size" or other_numbers


def run_to_resume(path: Path) -> Path:
    """The folder of the run that --resume names: itself, or by its newest checkpoint.

    Raises:
        InputError: it is another file.
    """
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100  resolve would follow links
    if path.name == LAST and folder.name == "checkpoints":  # it may be lost, and another be there
        return path.parent.parent if path.parent.name == "checkpoints" else folder.parent
    if not path.is_file():
        return path
    raise InputError(f"--resume: {path} is a file; give the folder of the run, or its checkpoints/{LAST}")


def resume_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder, as plain values.

    Raises:
        InputError: there is no run to continue.
    """
    if not folder.is_dir():
        raise InputError(f"--resume: the run folder {folder} does not exist")
    written = folder / "config.yaml"
    if has_checkpoint(folder):
        config = load_newest(folder, say=False)["config"]  # who goes on from it says so
        if (changed := _edited(written, config)) is not None:
            log.warning(
                "%s is only a record and is not read: the run continues with the settings of its "
                "checkpoint (%s); give changes on the command line",
                written, changed,
            )  # fmt: skip
        return config
    if not written.is_file():
        raise InputError(f"--resume: {folder} has no checkpoints/{LAST} to continue from")
    log.warning(f"{folder} has no checkpoint yet; the run starts from its first step")
    try:
        content = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):  # empty, say, after a power failure
        raise InputError(f"--resume: {written} cannot be read, and there is no checkpoint")
    return content
