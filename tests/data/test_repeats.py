"""Repeat factor sampling: how often images of rare classes appear, each time as another sample."""

from itertools import chain
from math import ceil, floor, sqrt
from pathlib import Path

import numpy as np
import pytest

from data.annotations import AnnotatedImage, Annotation, pack_set
from data.loader import DetectionDataset
from data.order import EpochBatches
from data.repeats import class_frequencies, draw_counts, repeat_factors, samples_of
from data.sample import DetectionSet
from data.transforms import Pipeline
from detector.training.trainer import Trainer
from tests.builders import coco_dict, write_coco, write_image
from tests.detector.evaluation.test_voc import make as voc_case
from tests.runs import tiny_config

CLASSES = ("common", "rare", "absent")
FACTORS = np.array([1.0, 2.3, 1.0, 3.0, 1.55, 1.45, 1.7])  # 12 in all


def set_of(folder: Path, labels: list[list[int]], ignored: tuple[int, ...] = ()) -> DetectionSet:
    """An image for each list of labels; in the images of `ignored` all boxes are ignored."""
    images = []
    for i, mine in enumerate(labels):
        write_image(folder / f"{i}.png", seed=i)
        boxes = [Annotation("", (2.0, 3.0, 30.0, 33.0), label, ignore=i in ignored) for label in mine]
        images.append(AnnotatedImage(i, folder / f"{i}.png", (48, 64), boxes))
    return pack_set(images, CLASSES, (1, 2, 3), "the split")


def test_factors_are_those_of_the_definition(tmp_path: Path) -> None:
    """Gupta et al. 2019, by a loop over images and classes; a class counts once per image."""
    labels = [[0], [0, 1, 1], [0], [], [1], [0], [0], [0, 0]]
    ignored = (4,)  # its rare object does not count
    records = set_of(tmp_path, labels, ignored)
    counted = [set() if i in ignored else set(mine) for i, mine in enumerate(labels)]
    part = [sum(label in mine for mine in counted) / len(labels) for label in range(3)]
    assert class_frequencies(records).tolist() == part == [0.75, 0.125, 0]
    for share in (0.05, 0.5, 1.0):
        expected = [max([1.0, *(sqrt(share / part[label]) for label in mine)]) for mine in counted]
        assert repeat_factors(records, share).tolist() == pytest.approx(expected)


def test_counts_are_the_factors_on_average_and_add_up_to_the_same() -> None:
    """A factor of 2.3 gives 2 or 3; the bound is five standard errors of the mean of coin tosses."""
    rng, draws = np.random.default_rng(0), 4000
    counts = np.array([draw_counts(FACTORS, rng) for _ in range(draws)])
    assert set(counts.sum(axis=1)) == {samples_of(FACTORS)} == {12}
    for one, factor in zip(counts.T, FACTORS, strict=True):
        assert set(one) == {floor(factor), ceil(factor)}
        assert one.mean() == pytest.approx(factor, abs=5 * 0.5 / sqrt(draws))
    # Two of the four fractional parts are rounded up; which ones is random.
    assert len(np.unique(counts, axis=0)) > 4


@pytest.mark.parametrize("factors", [np.ones(5), np.array([1.0, 1.2, 1.2]), np.array([3.0])])
def test_every_image_comes_at_least_once(factors: np.ndarray) -> None:
    counts = draw_counts(factors, np.random.default_rng(1))
    assert (counts >= 1).all() and counts.sum() == samples_of(factors) == round(factors.sum())


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_holds_every_sample_once_however_it_is_dealt_out(grouped: bool) -> None:
    proportions = np.array([0.5, 1.0, 2.0, 0.5, 1.0, 2.0, 0.5]) if grouped else None

    def batches(rank: int = 0, processes: int = 1) -> EpochBatches:
        return EpochBatches(7, 4, 3, 1, rank, processes, proportions, repeats=FACTORS)

    whole, parts, seen = batches(), [batches(rank, 2) for rank in range(2)], set()
    assert (whole.length, whole.steps) == (12, 3)
    for epoch in range(5):
        for one in (whole, *parts):
            one.start_at(epoch)
        keys = list(whole)
        samples = [(key.row, key.again) for key in chain(*keys)]
        counts = np.bincount([row for row, _ in samples], minlength=7)
        assert sorted(samples) == [(row, k) for row in range(7) for k in range(counts[row])]
        assert all(floor(f) <= c <= ceil(f) for f, c in zip(FACTORS, counts, strict=True))
        assert [one + two for one, two in zip(*parts, strict=True)] == keys
        whole.start_at(epoch, 1)
        assert list(whole) == keys[1:]
        seen.add(tuple(samples))
    assert len(seen) == 5


def test_copies_of_an_image_are_dealt_to_other_batches_where_like_shapes_meet() -> None:
    """Copies have the same proportions; seven of them go into seven batches, if there are that many."""
    repeats = np.ones(200)
    repeats[[20, 90]] = 7.0
    proportions = np.random.default_rng(0).uniform(0.5, 2.0, 200)
    batches = EpochBatches(200, 8, seed=0, proportions=proportions, repeats=repeats)
    spreads = []
    for epoch in range(10):
        batches.start_at(epoch)
        for keys in batches:
            rows = [key.row for key in keys]
            assert len(set(rows)) == len(rows)
            spreads.append(np.ptp(proportions[rows]))
    assert np.median(spreads) < 0.2  # out of 1.5
    # 36 batches, which are not cut into stretches of one batch or very few.
    repeats = np.where(np.arange(300) < 15, 20.0, 1.0)
    proportions = np.random.default_rng(0).uniform(0.5, 2.0, 300)
    batches = EpochBatches(300, 16, seed=0, proportions=proportions, repeats=repeats)
    for epoch in range(20):
        batches.start_at(epoch)
        assert all(len({key.row for key in keys}) == 16 for keys in batches)
    few = EpochBatches(2, 4, seed=0, proportions=proportions[:2], repeats=np.array([7.0, 1.0]))
    assert sorted(key.row for key in chain(*few)) == [0] * 7 + [1]


def test_without_repeats_the_order_is_the_plain_shuffle() -> None:
    """So that a run of an earlier version continues as it would have."""
    batches = EpochBatches(9, 3, seed=5)
    batches.start_at(2)
    assert [key.row for key in chain(*batches)] == np.random.default_rng((5, 2)).permutation(9).tolist()
    assert {key.again for key in chain(*batches)} == {0}


def test_each_time_an_image_is_augmented_in_another_way(tmp_path: Path) -> None:
    records = set_of(tmp_path, [[0]])
    pipeline = Pipeline([{"RandomBrightnessContrast": {"p": 1.0}}], 0.3, "train")
    dataset = DetectionDataset(records, pipeline, seed=0)
    batches = EpochBatches(1, 4, seed=0, repeats=np.array([4.0]))
    pictures = {key.again: dataset[key].image.tobytes() for key in chain(*batches)}
    assert sorted(pictures) == [0, 1, 2, 3] and len(set(pictures.values())) == 4
    assert pictures[0] == dataset.sample(0, 0).image.tobytes()


def test_a_training_repeats_what_is_rare_and_says_so(tmp_path: Path, caplog, capsys) -> None:
    """One of eight images has a dog, so its factor is sqrt(8)."""
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0]]] * 8)
    for annotation in content["annotations"]:
        annotation["category_id"] = 7 if annotation["id"] == 1 else 3
    root = write_coco(tmp_path / "set", content, content)
    words = ("train.epochs=1", "data.repeat_rare=1")
    trainer = Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    assert trainer.parts.batches.repeats.tolist() == pytest.approx([sqrt(8), *7 * [sqrt(8 / 7)]])
    trainer.run()
    assert "8 training images (10 per epoch, with data.repeat_rare) with 8 boxes" in capsys.readouterr().out
    assert "repeats nothing" not in caplog.text
    for share in (0.125, 0.14):  # sqrt(0.14 * 8) = 1.06 for one image: rounded, no extra sample
        Trainer(tiny_config(root, tmp_path / "other", f"data.repeat_rare={share}"), "test")
        nothing = f"data.repeat_rare={share} has no effect: the rarest class, dog, is in 12.5 % of"
        assert f"{nothing} the images; set a higher value" in caplog.text


def test_an_image_comes_as_often_as_its_rarest_class_asks_whatever_stands_last_in_it() -> None:
    """All four images have class 0; the first has class 1 before it."""
    box = [0, 0, 9, 9]
    records, _ = voc_case([(0, 1, box, False), *[(i, 0, box, False) for i in range(4)]], [], 4, 2)
    np.testing.assert_allclose(repeat_factors(records, 0.9), [np.sqrt(0.9 / 0.25), 1, 1, 1])


def test_what_is_left_of_a_repeat_is_drawn_anew_in_each_epoch() -> None:
    """With a factor of 1.5, each image appears about 60 times in 40 epochs."""
    batches = EpochBatches(20, 5, 0, repeats=np.full(20, 1.5))
    counts = np.zeros(20, dtype=np.int64)
    for epoch in range(40):
        batches.start_at(epoch)
        counts += np.bincount([key.row for batch in batches for key in batch], minlength=20)
    assert counts.sum() == 40 * 30
    assert 48 < counts.min() and counts.max() < 72
