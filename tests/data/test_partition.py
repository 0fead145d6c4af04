"""What data.split makes of counts and fingerprints: which images stay together, and what each part gets."""

import numpy as np
import pytest

from data.check.alike import near_pairs
from data.split.division import Division
from data.split.partition import groups_of, partition


@pytest.mark.parametrize("seed", range(4))
def test_each_part_has_its_share_of_images_and_of_every_class(seed: int) -> None:
    """Within 1 % of the images, and 3 % of the boxes or 1.5; a random draw is off by far more."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson([3.0, 0.5, 0.05, 0.02], (600, 4))
    part = partition(counts, np.arange(600), (0.7, 0.2, 0.1), seed)
    for k, share in enumerate((0.7, 0.2, 0.1)):
        assert abs((part == k).sum() - share * 600) <= 6
        wanted = share * counts.sum(axis=0)
        assert (np.abs(counts[part == k].sum(axis=0) - wanted) <= np.maximum(1.5, 0.03 * wanted)).all()


def test_groups_stay_together_and_the_whole_is_divided_all_the_same() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 300)
    counts = rng.poisson(1.0, (300, 3))
    part = partition(counts, groups, (0.8, 0.2), 0)
    assert all(len(set(part[groups == g])) == 1 for g in range(60))
    assert abs((part == 1).mean() - 0.2) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_images_without_boxes_are_divided_by_their_number_however_large_their_groups(seed: int) -> None:
    """Thirty images of one scene and seventy single ones, which make up for it: the shares are exact."""
    groups = np.append(np.zeros(30, dtype=np.int64), np.arange(1, 71))
    part = partition(np.zeros((100, 2), dtype=np.int64), groups, (0.7, 0.2, 0.1), seed)
    assert np.bincount(part).tolist() == [70, 20, 10]
    assert len(set(part[:30])) == 1


def test_the_seed_and_nothing_else_decides() -> None:
    counts = np.ones((50, 1), dtype=np.int64)
    once, again, other = (partition(counts, np.arange(50), (0.8, 0.2), seed) for seed in (3, 3, 4))
    assert (once == again).all() and (once != other).any()


def test_groups_join_through_others_and_blank_images_are_like_no_other() -> None:
    prints = np.zeros((6, 4), dtype=np.uint64)
    prints[1], prints[2], prints[3] = 5, 4, 2**40 - 1  # 1 and 2 differ in 1 bit, 3 from both in far more
    assert groups_of(prints, [1, 2, "a", "a", 3, 4]).tolist() == [0, 1, 1, 1, 4, 5]
    assert groups_of(prints).tolist() == [0, 1, 1, 3, 4, 5]
    assert groups_of(prints, [*"abcdef"], [*"bghijk"]).tolist() == [0, 1, 1, 3, 4, 5]  # kinds do not mix
    assert groups_of(prints[:0]).tolist() == []


def flipped(fingerprint: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """A fingerprint, uint64 [4], with these of its 256 bits flipped."""
    turned = np.unpackbits(fingerprint.view(np.uint8))
    turned[bits] ^= 1
    return np.packbits(turned).view(np.uint64)


def test_what_differs_in_fifteen_bits_is_alike_wherever_they_are() -> None:
    """Oracle: all pairs compared. 15 or 16 bits differ: one in each of as many bands, or anywhere."""
    rng = np.random.default_rng(0)
    prints = rng.integers(0, 2**64, (400, 4), dtype=np.uint64)
    prints[::7] = prints[0]  # a scene that hardly changes, and frames that drift away from it
    for k in range(1, 200):
        number = 15 + k % 2
        bits = rng.permutation(256)[:number] if k % 3 else rng.permutation(16)[:number] * 16 + k % 16
        prints[2 * k] = flipped(prints[2 * k - 1 - (k % 5 == 0)], bits)
    prints[5] = 0
    distance = np.bitwise_count(prints[:, None] ^ prints).sum(axis=2)
    near = (distance <= 15) & prints.any(axis=1) & prints.any(axis=1)[:, None]
    expected = np.arange(len(prints))
    for _ in range(len(prints)):  # each takes the lowest number among the rows near it
        expected = np.where(near, expected, len(prints)).min(axis=1).clip(max=np.arange(len(prints)))
    assert groups_of(prints).tolist() == expected.tolist()
    assert 200 < len(np.unique(expected)) < 300
    found = dict(near_pairs(prints[:200], prints[200:]))
    assert sorted(found) == np.flatnonzero(near[:200, 200:].any(axis=1)).tolist()
    assert all(near[row, 200 + other] for row, other in found.items())


def test_between_parts_that_want_a_class_alike_the_one_with_fewer_images_gets_it() -> None:
    """By hand: if no more boxes are wanted, the number of images decides."""
    counts = np.array([[4, 0]] + [[0, 1]] * 2 + [[0, 0]] * 9)
    groups = np.array([0, 1, 2, *[3] * 5, 4, 5, 6, 7])
    part = partition(counts, groups, (0.5, 0.5), 0)
    assert np.bincount(part).tolist() == [6, 6]


@pytest.mark.parametrize(
    ("images", "boxes", "shares"),
    [(2, 2, (0.8, 0.2)), (2, 30, (0.8, 0.2)), (3, 1, (0.7, 0.15, 0.15)), (4, 5, (0.7, 0.15, 0.15))],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_can_be_in_every_part_is(
    images: int, boxes: int, shares: tuple[float, ...], seed: int
) -> None:
    """However many boxes it has per image, among sixty images of another class."""
    counts = np.zeros((60, 2), dtype=np.int64)
    counts[:, 0] = 3
    counts[5 : 5 + images, 1] = boxes
    part = partition(counts, np.arange(60), shares, seed)
    assert {*part[counts[:, 1] > 0].tolist()} == {*range(len(shares))}
    assert np.abs(np.bincount(part) - 60 * np.array(shares)).max() <= 1.5


def test_a_part_does_not_become_most_of_the_set_for_the_sake_of_a_class() -> None:
    """A scene of sixty images has a class that the small parts lack, but stays where it fits."""
    groups = np.concatenate((np.zeros(2), np.ones(60), np.full(2, 2), np.arange(3, 39))).astype(np.int64)
    counts = np.ones((100, 3), dtype=np.int64)
    counts[:, 0], counts[:, 1] = groups <= 2, groups == 0
    part = partition(counts, groups, (0.8, 0.1, 0.1), 0)
    assert (np.bincount(part)[1:] <= 12).all()


def test_of_a_thousand_classes_the_commonest_of_each_part_are_told() -> None:
    counts = np.zeros((3, 1000), np.int64)
    counts[0] = np.arange(1000)
    counts[2, :] = 1
    part = np.array([0, 0, 1])
    classes = tuple(f"c{label}" for label in range(1000))
    division = Division({"train": 0.7, "val": 0.3}, part, counts, np.arange(3), part, 0, classes)
    train, val = division.lines()
    common = ", ".join(f"{label} c{label}" for label in range(999, 979, -1))
    assert train == f"train  2 images: {common}, {sum(range(980))} of 980 other classes"
    assert val.startswith("val    1 image: 1 c0, 1 c1,") and val.endswith("1 c19, 980 of 980 other classes")
