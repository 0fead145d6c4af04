"""Partitions a set of images: balanced, with similar images kept together."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from data.check.alike import groups_linked, near_groups


def groups_of(prints: NDArray[np.uint64], *keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """The group of each image: images that look nearly alike or share a key are in one group.

    Args:
        prints: uint64 [I, 4], from `data.check.scan.fingerprint`; zero rows match nothing.
        keys: one or more kinds of keys, each with one per image; None equals nothing.

    Returns:
        int64 [I], the lowest row of each image's group.
    """
    links = []
    for of_kind in keys:
        first: dict[Hashable, int] = {}
        known = [row for row, key in enumerate(of_kind) if key is not None]
        same = [first.setdefault(of_kind[row], row) for row in known]
        links.append((np.array(same, dtype=np.int64), np.array(known, dtype=np.int64)))
    group = groups_linked(near_groups(prints), links)
    lowest = np.full(group.max(initial=-1) + 1, len(prints), dtype=np.int64)
    np.minimum.at(lowest, group, np.arange(len(prints)))
    return lowest[group]


def partition(
    counts: NDArray[np.int64], groups: NDArray[np.int64], shares: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Assign groups of images to parts so that each part has its share of every class, and of the images.

    Iterative stratification (Sechidis et al., "On the Stratification of Multi-Label Data", ECML 2011): the
    class with the fewest boxes left is assigned first, each group to the part that lacks most of it.

    Args:
        counts: int64 [I, C], boxes of each class in each image.
        groups: int64 [I], equal for images that must stay together.
        shares: fraction for each part; they sum to 1.
        seed: breaks ties.

    Returns:
        int64 [I], the part of each image.
    """
    names, group_of_image = np.unique(groups, return_inverse=True)
    images = np.bincount(group_of_image)  # [G]
    boxes = np.zeros((len(names), counts.shape[1]), dtype=np.int64)  # [G, C]
    np.add.at(boxes, group_of_image, counts)
    # Large groups first: small ones can still compensate for them.
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-images[order], kind="stable")]
    share = np.asarray(shares, dtype=np.float64)
    wanted_images = share * images.sum()  # [S]
    wanted_boxes = np.outer(boxes.sum(axis=0), share)  # [C, S]
    # A class with enough groups should be in every part, however small its share.
    for_all = (boxes > 0).sum(axis=0) >= len(share)
    wanted_boxes[for_all] = wanted_boxes[for_all].clip(min=1)
    part = np.full(len(names), -1, dtype=np.int64)
    left = boxes.sum(axis=0)  # boxes of each class in unassigned groups
    lacking = np.ones((len(left), len(share)), dtype=np.bool_)  # [C, S], whether a part has none of a class

    def assign(group: int, wanted: NDArray[np.float64]) -> None:
        best = np.lexsort((wanted_images, wanted))[-1]
        part[group] = best
        wanted_images[best] -= images[group]
        wanted_boxes[:, best] -= boxes[group]
        left[:] -= boxes[group]
        lacking[boxes[group] > 0, best] = False

    while left.any():
        rarest = int(np.where(left > 0, left, left.max() + 1).argmin())
        having = order[(part[order] < 0) & (boxes[order, rarest] > 0)].tolist()
        for k, group in enumerate(having):
            wanted = wanted_boxes[rarest]
            # A single group with many boxes may fill a part's share. The last groups are reserved for parts
            # without the class, provided that they fit.
            fits = lacking[rarest] & (images[group] <= wanted_images.clip(min=1))
            if for_all[rarest] and len(having) - k <= lacking[rarest].sum() and fits.any():
                wanted = np.where(fits, wanted, -np.inf)
            assign(group, wanted)
    for group in order[part[order] < 0].tolist():
        assign(group, wanted_images)
    return part[group_of_image]
