"""Which pictures count as the same. Oracle: all pairs, compared one by one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.check.alike import near_groups, near_pairs, source_of
from data.check.scan import _look, fingerprint

LIMIT = 15  # bits of 256 that may differ


def flipped(one: NDArray[np.uint64], bits: NDArray[np.int64]) -> NDArray[np.uint64]:
    flat = np.unpackbits(one.view(np.uint8))
    flat[bits] ^= 1
    return np.packbits(flat).view(np.uint64)


def planted(seed: int, families: int = 12, members: int = 6, layout: int = 0) -> NDArray[np.uint64]:
    """Fingerprints in families: each member differs from an earlier one in 0 or 13 to 18 bits.

    layout: how many of the four words of 64 bits are the same in all families.
    """
    rng = np.random.default_rng(seed)
    prints = [np.zeros(4, np.uint64)]
    for _ in range(families):
        family = [rng.integers(0, 2**64, 4, dtype=np.uint64)]
        family[0][:layout] = 12345
        for _ in range(int(rng.integers(0, members))):
            bits = rng.permutation(256)[: rng.choice([0, 13, LIMIT, LIMIT + 1, 18])]
            family.append(flipped(family[int(rng.integers(len(family)))], bits))
        prints += family
    prints.append(np.zeros(4, np.uint64))
    return np.stack(prints)[rng.permutation(len(prints))]


def distance(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> int:
    return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


def near(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> bool:
    return bool(one.any() and other.any()) and distance(one, other) <= LIMIT


def families(count: int, links: set[tuple[int, int]]) -> set[frozenset[int]]:
    """The connected components of the rows."""
    of = {row: frozenset([row]) for row in range(count)}
    for one, other in links:
        joined = of[one] | of[other]
        of.update(dict.fromkeys(joined, joined))
    return set(of.values())


# Small families; families with a common layout, large and small; scenes of many frames; a single scene.
SETS = [
    *({"seed": seed} for seed in range(12)),
    *({"seed": seed, "families": 40, "members": 30, "layout": 3} for seed in range(2)),
    *({"seed": seed, "families": 200, "members": 2, "layout": 3} for seed in range(2)),
    {"seed": 0, "families": 3, "members": 400},
    {"seed": 3, "families": 1, "members": 600},
]


@pytest.mark.parametrize("kind", SETS)
def test_groups_hold_what_is_near_through_others_too(kind: dict[str, int]) -> None:
    prints = planted(**kind)
    groups = near_groups(prints).tolist()
    rows = range(len(prints))
    every = {(i, j) for i in rows for j in rows if i < j and near(prints[i], prints[j])}
    found = {frozenset(row for row in rows if groups[row] == group) for group in groups}
    assert found == families(len(prints), every)


@pytest.mark.parametrize("kind", SETS)
def test_each_row_that_has_a_near_one_in_the_other_set_is_paired(kind: dict[str, int]) -> None:
    prints = planted(**kind)
    third = len(prints) // 3
    mine, theirs = prints[:third], prints[third:]
    pairs = near_pairs(mine, theirs)
    assert [row for row, _ in pairs] == [
        i for i in range(third) if any(near(mine[i], other) for other in theirs)
    ]
    assert all(near(mine[row], theirs[other]) for row, other in pairs)


def test_sets_without_images() -> None:
    some, none = planted(0), np.empty((0, 4), np.uint64)
    assert near_groups(none).tolist() == near_pairs(none, some) == near_pairs(some, none) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dog_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg", "dog_jpg"),
        ("a.rf.b_png.rf.Xk3_q-9TzPQ0aa.png", "a.rf.b_png"),
        ("dog.jpg", None),
        ("dog.rf.jpg", None),
        (".rf.0a1b2c3d4e.jpg", None),
    ],
)
def test_versions_are_known_by_their_names(name: str, source: str | None) -> None:
    assert source_of(name) == source


def test_flat_pictures_are_like_no_other() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (80, 90, 3))
    assert not fingerprint(np.full((80, 90, 3), 200, np.uint8)).any()
    assert not fingerprint((200 + noise).astype(np.uint8)).any()
    assert fingerprint(np.tile(np.linspace(0, 255, 90, dtype=np.uint8)[None, :, None], (80, 1, 3))).any()


def test_pictures_of_the_same_pixels_in_another_shape_are_no_copies(tmp_path: Path) -> None:
    looks = []
    for name, size in (("wide", (20, 10)), ("tall", (10, 20)), ("copy", (20, 10))):
        Image.new("RGB", size, (9, 9, 9)).save(tmp_path / f"{name}.png")
        looks.append(_look((str(tmp_path / f"{name}.png"), [size[1], size[0]])).digest)
    assert looks[0] == looks[2] != looks[1]
