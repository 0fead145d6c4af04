"""The data check for a configuration: all of it, or the fast part before a training."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from data.check.annotations import annotation_spots
from data.check.findings import OF_PLACES, AnySpot, Level, Spot, gather, spot_of_fault
from data.check.images import image_spots
from data.check.report import AnchorReport, LevelFit, Report, summarise
from data.check.scan import ImageFacts, scan
from data.faults import DataFault, UnreadableImages
from data.sample import DetectionSet
from detector.anchor_fit import level_ious
from detector.boxes import area
from detector.builders.data import build_pipeline, build_set
from detector.config import Config
from detector.training.anchor_check import IMAGES, AnchorFit, measure_anchors, recall, seen_boxes
from errors import InputError

log = logging.getLogger(__name__)
_NOUNS = {"voc": "object", "yolo": "line"}
_LINES_BEFORE_TRAINING = 5
_PIXELS_BEFORE_TRAINING = 2e7  # pixels of blank images to augment: a fraction of a second
_LEAST_IMAGES, _MOST_IMAGES = 8, 64
_MOSTLY = 0.5  # fraction of the samples
_OTHER_SIZE = 2.0  # objects this many times as large were hardly learnt; augmentation varies the size


@dataclass(frozen=True)
class Examination:
    """The report, and the sets that could be read, for pictures of them."""

    report: Report
    sets: dict[str, DetectionSet]


def examine(config: Config, title: str, decode: bool) -> Examination:
    """Check all splits of a configuration.

    Args:
        title: name of the configuration in the report.
        decode: check the images as well, not only the annotations.

    Raises:
        InputError: no split can be read at all.
    """
    started = time.monotonic()
    sets, refused = _read(config)
    faulty = frozenset(spot.image for spot in refused if spot.image and spot.code.startswith("image-"))
    spots: list[AnySpot] = [*refused]
    spots += _annotation_spots(config, sets, paths=not decode)
    facts: dict[str, list[ImageFacts]] = {name: [] for name in sets}
    if decode:
        facts = {name: scan(records, name) for name, records in sets.items()}
        spots += image_spots(sets, facts, faulty)
    anchors = None
    train = _without(sets["train"], faulty) if "train" in sets else None
    if train is not None and len(train.boxes):
        fit = measure_anchors(train, config)
        spots += [*_emptied_spots(fit), *_anchor_spots(fit), *_scale_spots(fit, train, config)]
        anchors = _anchor_report(fit)
    summaries = {name: summarise(records, facts[name]) for name, records in sets.items()}
    findings = tuple(gather(_without_places(spots)))
    return Examination(Report(title, time.monotonic() - started, decode, findings, summaries, anchors), sets)


def _annotation_spots(config: Config, sets: Mapping[str, DetectionSet], paths: bool) -> Iterator[AnySpot]:
    centred = config.data.format == "yolo"
    pipeline = build_pipeline(config.data, training=False, geometry=True)
    return annotation_spots(sets, _noun(config), pipeline, paths, centred)


def _without_places(spots: list[AnySpot]) -> list[AnySpot]:
    """Drop findings about box positions in images of unknown size: the boxes may be right."""
    unknown = {spot.image for spot in spots if spot.code == "image-size-differs"}
    if not unknown:
        return spots
    return [spot for spot in spots if spot.code not in OF_PLACES or spot.image not in unknown]


def warn_before_training(config: Config, train: DetectionSet, val: DetectionSet) -> None:
    """Warn, briefly, about annotations that hurt training.

    Takes at most a second, plus the time to read `data.splits.test`, if there is one, and with resizing other
    than ResizeWithin a millisecond for each image size.
    """
    _try_test_split(config, train.classes)
    spots = list(_annotation_spots(config, {"train": train, "val": val}, paths=True))
    pixels = float(train.sizes.prod(axis=1).mean())
    images = int(np.clip(_PIXELS_BEFORE_TRAINING / pixels, _LEAST_IMAGES, _MOST_IMAGES))
    fit = measure_anchors(train, config, images, search=False)
    spots += [*_emptied_spots(fit), *_anchor_spots(fit), *_scale_spots(fit, train, config, images)]
    found = [finding for finding in gather(spots) if finding.kind.level < Level.NOTE]
    for finding in found[:_LINES_BEFORE_TRAINING]:
        first, more = finding.spots[0].text, len(finding.spots) - 1
        others = f" (and {more} more)" if more else ""
        log.warning("data: %s: %s%s; %s", finding.kind.what, first, others, finding.kind.remedy)
    if len(found) > _LINES_BEFORE_TRAINING:
        rest = len(found) - _LINES_BEFORE_TRAINING
        log.warning("data: there are %d more kinds of faults; python -m data.check lists all of them", rest)


def _try_test_split(config: Config, classes: tuple[str, ...]) -> None:
    """Read the test split, which is needed after the training: better to learn of a typo before."""
    splits = config.data.splits
    if splits.test in (None, splits.val, splits.train):
        return
    try:
        build_set(config.data, "test", classes, faults=UnreadableImages())
    except InputError as error:
        log.warning("data.splits.test: %s; evaluate.py --split test will need it", error)


def _read(config: Config) -> tuple[dict[str, DetectionSet], list[Spot]]:
    """The readable splits, each with its own classes, and the faults that the readers found."""
    sets: dict[str, DetectionSet] = {}
    spots: list[Spot] = []
    failure: InputError | None = None
    for split in ("train", "val", "test"):
        names = getattr(config.data.splits, split)
        if names is None or (split == "test" and names == config.data.splits.val):
            continue
        faults: list[DataFault] = []
        try:
            sets[split] = _read_split(config, split, sets.get("train"), faults)
        except InputError as error:
            failure = failure or error
            spots.append(Spot("split-unreadable", f"{split}: {error}", split))
        spots += [spot_of_fault(fault, split) for fault in faults]
        if config.data.format == "voc" and split != "train" and {"train", split} <= sets.keys():
            # A VOC split has only the classes that happen to occur, so a missing one is no fault.
            sets[split] = _with_classes(sets[split], sets["train"].classes)
    if failure is not None and not sets:
        raise failure
    return sets, spots


def _read_split(
    config: Config, split: str, train: DetectionSet | None, faults: list[DataFault]
) -> DetectionSet:
    """Read a split with its own classes, or with those of training if joined parts list different ones."""
    try:
        return build_set(config.data, split, faults=faults)
    except InputError:
        if train is None:
            raise
        first, faults[:] = faults.copy(), []
        with suppress(InputError):
            return build_set(config.data, split, train.classes, faults=faults)
        faults[:] = first
        raise


def _with_classes(records: DetectionSet, classes: tuple[str, ...]) -> DetectionSet:
    """The set with the missing ones of `classes` appended to its own."""
    names = tuple(dict.fromkeys((*records.classes, *classes)))
    return replace(records, classes=names, category_ids=tuple(range(1, len(names) + 1)))


def _without(records: DetectionSet, faulty: frozenset[str]) -> DetectionSet:
    """The set without the images of these files and their boxes."""
    kept = np.array([str(file) not in faulty for file in records.files], dtype=np.bool_)
    left = records.with_boxes(kept[records.image_of_box])
    of_images = {name: getattr(left, name)[kept] for name in ("files", "image_ids", "sizes")}
    return replace(left, offsets=np.concatenate(([0], left.offsets[1:][kept])), **of_images)


def _noun(config: Config) -> str:
    return _NOUNS.get(config.data.format, "annotation")


def _emptied_spots(fit: AnchorFit) -> list[Spot]:
    seen = fit.seen
    if seen.emptied <= _MOSTLY * seen.samples:
        return []
    text = (
        f"data.transforms.train leaves no object in {100 * seen.emptied / seen.samples:.0f} % of samples "
        f"from images that have objects ({seen.samples} drawn)"
    )
    return [Spot("objects-lost", text, "train")]


def _anchor_spots(fit: AnchorFit) -> list[Spot]:
    if not fit.little:
        return []
    missed = fit.seen.boxes[fit.best < fit.positive_iou]
    width, height = (missed[:, 2:] - missed[:, :2]).median(dim=0).values.tolist()
    text = (
        f"{len(missed)} of {len(fit.best)} boxes, as augmented, do not reach IoU {fit.positive_iou:g} with "
        f"any anchor, and {int((fit.best < fit.negative_iou).sum())} not even {fit.negative_iou:g}; half of "
        f"them are wider than {width:.0f} px, half are higher than {height:.0f} px (model.anchors)"
    )
    return [Spot("anchors-miss", text, "train")]


def _scale_spots(fit: AnchorFit, train: DetectionSet, config: Config, images: int = IMAGES) -> list[Spot]:
    """Compare the size of objects in training and in evaluation; crops and image sizes do not reveal it."""
    evaluated = seen_boxes(train, config, images=images, training=False)
    if not len(fit.seen.boxes) or not len(evaluated.boxes):
        return []
    learnt, shown = (float(area(seen.boxes).sqrt().median()) for seen in (fit.seen, evaluated))
    if 1 / _OTHER_SIZE < shown / max(learnt, 1e-9) < _OTHER_SIZE:
        return []
    text = (
        f"the median size of the training objects (the root of width x height) is {shown:.3g} px after "
        f"data.transforms.eval, but {learnt:.3g} px after data.transforms.train"
    )
    return [Spot("size-not-learnt", text, "train")]


def _anchor_report(fit: AnchorFit) -> AnchorReport:
    of_level = fit.ious.argmax(1)
    groups = {"all": fit.best}
    for level in range(fit.ious.shape[1]):
        groups[f"P{3 + level}"] = fit.best[of_level == level]
    levels = []
    for name, best in groups.items():
        parts = [recall(best, iou) if len(best) else 0.0 for iou in (fit.positive_iou, fit.negative_iou)]
        levels.append(LevelFit(name, len(best), *parts))
    sides = (fit.seen.boxes[:, 2:] - fit.seen.boxes[:, :2]).double().numpy()
    return AnchorReport(
        positive_iou=fit.positive_iou,
        negative_iou=fit.negative_iou,
        sizes=tuple(size for level in fit.shapes.sizes for size in level),
        ratios=fit.shapes.ratios,
        levels=tuple(levels),
        box_sizes=np.sqrt(sides.prod(axis=1)),
        box_ratios=sides[:, 1] / sides[:, 0],
        suggestion=None if fit.suggested is None else fit.suggested.yaml(),
        suggested_positive=None
        if fit.suggested is None
        else recall(level_ious(fit.seen, fit.suggested).amax(1), fit.positive_iou),
    )
