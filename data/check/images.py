"""Checks of decoded images: damage, pixel formats, EXIF, duplicates."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.check.findings import Spot, spot_of_image
from data.check.repeats import near_spots, repeat_spots
from data.check.scan import ImageFacts
from data.sample import DetectionSet

_DARK = 64  # of 255: values of at most 14 bits in 16-bit files

Facts = Mapping[str, list[ImageFacts]]  # split -> facts in the order of its rows


def image_spots(sets: Mapping[str, DetectionSet], facts: Facts, known: frozenset[str]) -> Iterator[Spot]:
    """Faults of the images themselves.

    Args:
        known: paths of images whose fault was reported already.
    """
    for split, records in sets.items():
        for row, of_image in enumerate(facts[split]):
            if str(records.files[row]) not in known:
                yield from _one(split, records, row, of_image)
        yield from _kinds(split, records, facts[split])
    yield from _same_names(sets, facts)
    digests = {split: [of_image.digest for of_image in found] for split, found in facts.items()}
    yield from repeat_spots(sets, digests, "has the same pixels as")
    yield from near_spots(sets, _prints_without_copies(facts))


def modes(facts: Sequence[ImageFacts]) -> dict[str, int]:
    """Number of images of each Pillow mode, the most frequent first."""
    return dict(Counter(f.header.mode for f in facts if f.header).most_common())


def _one(split: str, records: DetectionSet, row: int, facts: ImageFacts) -> Iterator[Spot]:
    path, number = str(records.files[row]), int(records.image_ids[row])
    if facts.problem is not None:
        code = "image-unreadable" if Path(path).is_file() else "image-missing"
        yield Spot(code, facts.problem, split, path, number)
        return
    header = facts.header
    if header is None:
        return
    height, width = (int(v) for v in records.sizes[row])
    if (height, width) not in (header.upright, header.stored):
        problem = (
            f"is {header.upright[1]} x {header.upright[0]} px, but its annotation says {width} x {height}"
        )
        yield spot_of_image("image-size-differs", problem, split, records, row)
    elif header.turned:
        code, used = "image-turned", "training uses it upright"
        if (height, width) != header.upright:
            code, used = "image-as-stored", "training uses it as stored, which its boxes fit"
        yield spot_of_image(code, f"is turned by EXIF; {used}", split, records, row)
    if header.pages > 1:
        problem = f"has {header.pages} pages or frames; training uses only the first"
        yield spot_of_image("image-many-pages", problem, split, records, row)


def _kinds(split: str, records: DetectionSet, facts: list[ImageFacts]) -> Iterator[Spot]:
    firsts: dict[str, int] = {}
    for row, of_image in enumerate(facts):
        if of_image.header:
            firsts.setdefault(of_image.header.mode, row)
    for mode, count in modes(facts).items():
        if mode != "RGB":
            problem = f"has Pillow's mode {mode}, like {count} of the {len(facts)} images of {split}"
            code = "image-not-rgb"
            bright = [f.brightest for f in facts if f.header and f.header.mode == mode]
            dark = [most for most in bright if most <= _DARK]
            if mode.startswith("I") and 2 * len(dark) >= len(bright):
                code = "range-unused"
                problem += f"; {len(dark)} of them are no brighter than {max(dark)} of 255 as read"
            yield spot_of_image(code, problem, split, records, firsts[mode])


def _same_names(sets: Mapping[str, DetectionSet], facts: Facts) -> Iterator[Spot]:
    """Files of the same name in different folders, with different pixels."""
    first: dict[str, tuple[str, bytes]] = {}
    for split, records in sets.items():
        for row, of_image in enumerate(facts[split]):
            if of_image.digest is None:
                continue
            path = str(records.files[row])
            other, digest = first.setdefault(Path(path).name.casefold(), (path, of_image.digest))
            if digest != of_image.digest:
                problem = f"has the same name as {other}, but different pixels"
                yield spot_of_image("same-name-other-image", problem, split, records, row)


def _prints_without_copies(facts: Facts) -> dict[str, np.ndarray]:
    """Fingerprints; 0 for exact copies of training images in evaluation, which are reported elsewhere."""
    trained = {of_image.digest for of_image in facts.get("train", ())}
    blank = np.zeros(4, dtype=np.uint64)
    return {
        split: np.array(
            [blank if split != "train" and f.digest in trained else f.fingerprint for f in found],
            dtype=np.uint64,
        ).reshape(-1, 4)
        for split, found in facts.items()
    }
