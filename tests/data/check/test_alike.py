"""Which pictures are taken for the same, against all pairs compared one by one."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data.check.alike import near_links, near_pairs, source_of
from data.check.scan import _look, fingerprint

LIMIT = 15  # bits of 256 that may differ


def flipped(one: NDArray[np.uint64], bits: NDArray[np.int64]) -> NDArray[np.uint64]:
    flat = np.unpackbits(one.view(np.uint8))
    flat[bits] ^= 1
    return np.packbits(flat).view(np.uint64)


def planted(seed: int, families: int = 12) -> NDArray[np.uint64]:
    """Fingerprints in families: each member differs from an earlier one in some 13 to 18 bits, or none."""
    rng = np.random.default_rng(seed)
    prints = [np.zeros(4, np.uint64)]
    for _ in range(families):
        family = [rng.integers(0, 2**64, 4, dtype=np.uint64)]
        for _ in range(int(rng.integers(0, 6))):
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
    """The connected rows."""
    of = {row: frozenset([row]) for row in range(count)}
    for one, other in links:
        joined = of[one] | of[other]
        of.update(dict.fromkeys(joined, joined))
    return set(of.values())


@pytest.mark.parametrize("seed", range(20))
def test_links_connect_what_is_near_through_others_too(seed: int) -> None:
    prints = planted(seed)
    links = {(min(pair), max(pair)) for pair in near_links(prints)}
    rows = range(len(prints))
    every = {(i, j) for i in rows for j in rows if i < j and near(prints[i], prints[j])}
    assert links <= every
    assert families(len(prints), links) == families(len(prints), every)


@pytest.mark.parametrize("seed", range(20))
def test_each_row_that_has_a_near_one_in_the_other_set_is_paired(seed: int) -> None:
    prints = planted(seed)
    half = len(prints) // 2
    mine, theirs = prints[:half], prints[half:]
    pairs = list(near_pairs(mine, theirs))
    assert [row for row, _ in pairs] == [
        i for i in range(half) if any(near(mine[i], other) for other in theirs)
    ]
    assert all(near(mine[row], theirs[other]) for row, other in pairs)


def test_a_still_scene_is_linked_once_each() -> None:
    one = np.random.default_rng(0).integers(0, 2**64, 4, dtype=np.uint64)
    assert len(near_links(np.tile(one, (500, 1)))) == 499


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
