"""The checks that need annotations only: fast enough to run before every training."""

from collections.abc import Iterator, Mapping

from data.check.boxes import box_spots
from data.check.classes import class_spots, split_spots
from data.check.findings import AnySpot
from data.check.repeats import path_spots, version_spots
from data.sample import DetectionSet
from data.transforms import Pipeline


def annotation_spots(
    sets: Mapping[str, DetectionSet], noun: str, pipeline: Pipeline, paths: bool, centred: bool
) -> Iterator[AnySpot]:
    """Faults of annotations that could be read.

    Args:
        sets: the splits by role, "train", "val" and "test".
        noun: what `annotation_ids` number: annotation, object, line.
        pipeline: the resizing of evaluation.
        paths: look for files that are listed twice; unnecessary where pixels are compared.
        centred: the format has centres (YOLO), not corners.
    """
    yield from class_spots(sets)
    yield from version_spots(sets)
    for split, records in sets.items():
        yield from split_spots(split, records)
        yield from box_spots(split, records, noun, pipeline.sizes_of(records.sizes), centred)
    if paths:
        yield from path_spots(sets)
