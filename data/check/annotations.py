"""The part of the check that looks at annotations alone: quick enough to be made before every training."""

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
    """What is wrong with annotations that could be read.

    Args:
        sets: the splits by their roles, "train", "val" and "test".
        noun: what `annotation_ids` number: annotation, object, line.
        pipeline: the resizing of evaluation.
        centred: boxes are written with their centres, not corners.
        paths: look for files that are named twice; needless where pixels are compared.
    """
    yield from class_spots(sets)
    yield from version_spots(sets)
    for split, records in sets.items():
        yield from split_spots(split, records)
        yield from box_spots(split, records, noun, pipeline.sizes_of(records.sizes), centred)
    if paths:
        yield from path_spots(sets)
