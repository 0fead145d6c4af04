"""One set of images in parts, such as training and validation: balanced, and alike images kept together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.check.repeats import near_rows


def groups_of(prints: NDArray[np.uint64], *keys: Sequence[object]) -> NDArray[np.int64]:
    """The group of each image: those that look nearly alike, or share a key, are in one.

    Args:
        prints: uint64 [I, W], as `data.check.scan.fingerprint` makes them; rows of zeros are like no other.
        keys: of each kind, one for each image; None is like no other.

    Returns:
        int64 [I], the lowest row of each image's group.
    """
    group = np.arange(len(prints))

    def join(rows: NDArray[np.int64]) -> None:
        joined = np.unique(group[rows])
        if len(joined) > 1:
            group[np.isin(group, joined)] = joined[0]

    for of_kind in keys:
        rows_of: dict[object, list[int]] = {}
        for row, key in enumerate(of_kind):
            if key is not None:
                rows_of.setdefault(key, []).append(row)
        for rows in rows_of.values():
            if len(rows) > 1:
                join(np.array(rows))
    for row, others in near_rows(prints):
        join(np.append(others, row))
    return group


def partition(
    counts: NDArray[np.int64], groups: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Assign groups of images to parts so that each part has its share of every class, and of the images.

    Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", ECML 2011): the
    class with the fewest boxes left is shared out first, each time to the part that wants it most.

    Args:
        counts: int64 [I, C], boxes of each class in each image.
        groups: int64 [I], equal for images that must stay together.
        shares: of the parts; they add up to 1.
        seed: decides between equals.

    Returns:
        int64 [I], the part of each image.
    """
    names, group_of_image = np.unique(groups, return_inverse=True)
    images = np.bincount(group_of_image)  # [G]
    boxes = np.zeros((len(names), counts.shape[1]), dtype=np.int64)  # [G, C]
    np.add.at(boxes, group_of_image, counts)
    # Large groups first: small ones can still make up for them.
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-images[order], kind="stable")]
    share = np.asarray(shares, dtype=np.float64)
    wanted_images = share * images.sum()  # [S]
    wanted_boxes = np.outer(boxes.sum(axis=0), share)  # [C, S]
    # A class that can be in every part should be, however small its share.
    for_all = (boxes > 0).sum(axis=0) >= len(share)
    wanted_boxes[for_all] = wanted_boxes[for_all].clip(min=1)
    part = np.full(len(names), -1, dtype=np.int64)

    def assign(group: int, wanted: NDArray[np.float64]) -> None:
        best = np.lexsort((wanted_images, wanted))[-1]
        part[group] = best
        wanted_images[best] -= images[group]
        wanted_boxes[:, best] -= boxes[group]

    while True:
        left = boxes[part < 0].sum(axis=0)
        if not left.any():
            break
        rarest = int(np.where(left > 0, left, left.max() + 1).argmin())
        for group in order:
            if part[group] < 0 and boxes[group, rarest]:
                assign(int(group), wanted_boxes[rarest])
    for group in order:
        if part[group] < 0:
            assign(int(group), wanted_images)
    return part[group_of_image]
