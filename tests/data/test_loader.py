"""Batches: the same for any number of workers and any restart, different in every epoch."""

import os
from dataclasses import fields
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.annotations import AnnotatedImage, Annotation, pack_set
from data.feed import checked
from data.loader import DetectionDataset, eval_loader, train_loader
from data.order import EpochBatches, like_batches
from data.sample import Batch, Sample, collate
from data.transforms import Pipeline
from errors import InputError
from tests.builders import write_image

AUGMENT = ["HorizontalFlip", "IoUCrop", {"RandomBrightnessContrast": {"p": 1.0}}]


def make_set(folder, count=7, sizes=((48, 64), (64, 48), (40, 40))):
    """Images of several sizes; image i has i % 3 boxes."""
    images = []
    for i in range(count):
        path, size = folder / f"{i}.png", sizes[i % len(sizes)]
        write_image(path, *size, seed=i)
        boxes = [(2.0 + k, 3.0, 30.0 + k, 33.0 + i) for k in range(i % 3)]
        objects = [Annotation("", box, label=k, ignore=k > 0) for k, box in enumerate(boxes)]
        images.append(AnnotatedImage(100 + i, path, size, objects))
    return pack_set(images, ("cat", "dog"), (1, 2), "the split")


def train(records, workers=0, batch_size=2, seed=0, transforms=AUGMENT):
    batches = EpochBatches(len(records), batch_size, seed)
    pipeline = Pipeline(transforms, 0.3, "train")
    return train_loader(records, pipeline, batches, seed, 0, workers, False), batches


def epoch_of(loader, batches, epoch, first=0) -> list[Batch]:
    batches.start_at(epoch, first)
    return list(checked(loader))


def content(batch: Batch):
    """Everything in a batch, byte for byte."""
    return [
        (f.name, getattr(batch, f.name).shape, getattr(batch, f.name).numpy().tobytes())
        for f in fields(batch)
    ]


def test_worker_count_and_global_seeds_change_nothing(tmp_path):
    """By default, albumentations repeats its draws in every worker and every epoch."""
    records, seen = make_set(tmp_path), []
    for workers in (0, 1, 2):
        torch.manual_seed(workers)
        np.random.seed(workers)  # noqa: NPY002 - the global state must not matter
        loader, batches = train(records, workers)
        seen.append([[content(b) for b in epoch_of(loader, batches, epoch)] for epoch in (0, 1)])
    assert len(seen[0][0]) == 3
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]
    assert seen[0][0] != seen[0][1]


@pytest.mark.parametrize(
    ("cores", "processes", "workers"),
    [(1, 1, 0), (3, 1, 2), (5, 1, 4), (64, 1, 4), (8, 4, 1), (8, 8, 0), (64, 8, 4)],
)
def test_a_core_is_left_to_each_process_of_the_training_and_four_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, workers: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    records = make_set(tmp_path)
    assert train(records, workers=None)[0].num_workers == workers
    assert eval_loader(records, Pipeline([], 0.0, "eval"), 3, None, False).num_workers == workers


def test_restart_continues_exactly(tmp_path):
    records = make_set(tmp_path, 9)
    straight = [content(b) for b in epoch_of(*train(records), epoch=3)]
    assert len(straight) == 4
    for first in range(5):
        assert [content(b) for b in epoch_of(*train(records), 3, first)] == straight[first:]


def test_every_epoch_augments_anew(tmp_path):
    """One image, so that the order cannot make the difference."""
    loader, batches = train(make_set(tmp_path, 1))
    images = {epoch_of(loader, batches, epoch)[0].images.numpy().tobytes() for epoch in range(6)}
    assert len(images) == 6


def test_every_image_and_seed_augments_on_its_own(tmp_path):
    """One file, listed four times."""
    write_image(tmp_path / "0.png")
    images = [AnnotatedImage(k, tmp_path / "0.png", (48, 64)) for k in range(4)]
    records = pack_set(images, ("cat",), (1,), "the split")
    pipeline = Pipeline(AUGMENT, 0.3, "train")
    samples = [
        DetectionDataset(records, pipeline, seed).sample(0, row) for seed in (0, 1) for row in range(4)
    ]
    assert len({s.image.tobytes() for s in samples}) == 8


@pytest.mark.parametrize(("length", "batch_size", "count"), [(10, 3, 3), (9, 3, 3), (4, 4, 1), (100, 1, 100)])
def test_epoch_is_a_permutation_without_its_incomplete_batch(length, batch_size, count):
    batches, orders = EpochBatches(length, batch_size, seed=5), []
    for epoch in (0, 1, 2):
        batches.start_at(epoch)
        keys = list(batches)
        assert len(keys) == len(batches) == count
        assert all(len(batch) == batch_size for batch in keys)
        assert {key[0] for batch in keys for key in batch} == {epoch}
        orders.append([key.row for batch in keys for key in batch])
        assert len(set(orders[-1])) == count * batch_size
        assert set(orders[-1]) <= set(range(length))
    assert length == batch_size == 4 or len({tuple(order) for order in orders}) == 3


def test_order_depends_on_the_seed_alone():
    first, again, other = (list(EpochBatches(50, 5, seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_every_image_is_left_out_in_turn():
    batches, left_out = EpochBatches(5, 4, seed=0), set()
    for epoch in range(60):
        batches.start_at(epoch)
        left_out |= set(range(5)) - {key.row for batch in batches for key in batch}
    assert left_out == set(range(5))


def test_set_smaller_than_a_batch_gives_one_batch(tmp_path):
    loader, batches = train(make_set(tmp_path, 3), batch_size=8)
    (batch,) = epoch_of(loader, batches, 0)
    assert len(loader) == 1
    assert sorted(batch.indices.tolist()) == [0, 1, 2]


def test_images_grow_with_the_epochs(tmp_path):
    """Oracle: OpenCV's area averaging of what the epoch gives at full size."""
    records = make_set(tmp_path, 8)
    dataset = DetectionDataset(records, Pipeline(AUGMENT, 0.3, "train"), seed=0)
    plain, growing = EpochBatches(8, 4, seed=0), EpochBatches(8, 4, seed=0, scales=(0.5, 0.75, 1.0))
    for epoch, scale in enumerate((0.5, 0.75, 1.0, 1.0)):
        for batches in (plain, growing):
            batches.start_at(epoch)
        for key, full in zip(chain(*growing), chain(*plain), strict=True):
            assert key == full._replace(scale=scale)
            small, large = dataset[key], dataset[full]
            height, width = (round(scale * side) for side in large.image.shape[:2])
            expected = large.image
            if scale < 1:
                expected = cv2.resize(large.image, (width, height), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(small.image, expected)
            ratio = np.array([width, height] * 2) / np.array([*large.image.shape[1::-1]] * 2)
            np.testing.assert_allclose(small.boxes, large.boxes * ratio, rtol=1e-5)
            assert small.original_size == large.original_size
            assert small.labels.tolist() == large.labels.tolist()


def test_one_orientation_mirrors_what_lies_the_other_way(tmp_path):
    """Samples are those of the plain run or their mirror images; restarts and processes change nothing."""
    records = make_set(tmp_path, 8)
    dataset = DetectionDataset(records, Pipeline(["D4"], 0.3, "train"), seed=0)
    plain, turned = (EpochBatches(8, 4, seed=0, one_orientation=one) for one in (False, True))
    drawn, mirrored = set(), 0
    for epoch in range(6):
        for batches in (plain, turned):
            batches.start_at(epoch)
        keys = list(turned)
        for batch, as_they_came in zip(keys, plain, strict=True):
            (upright,) = {key.upright for key in batch}
            drawn.add(upright)
            for key, other in zip(batch, as_they_came, strict=True):
                assert (key.epoch, key.row) == (other.epoch, other.row)
                sample, before = dataset[key], dataset[other]
                height, width = sample.image.shape[:2]
                assert height == width or (height > width) == upright
                if sample.image.shape != before.image.shape:
                    mirrored += 1
                    np.testing.assert_array_equal(sample.image, before.image.transpose(1, 0, 2))
                    x0, y0, x1, y1 = before.boxes.T
                    np.testing.assert_array_equal(sample.boxes, np.stack((y0, x0, y1, x1), axis=1))
                else:
                    np.testing.assert_array_equal(sample.image, before.image)
                    np.testing.assert_array_equal(sample.boxes, before.boxes)
        turned.start_at(epoch, 1)
        assert list(turned) == keys[1:]
        shares = [EpochBatches(8, 4, 0, 1, rank, 2, one_orientation=True) for rank in range(2)]
        for share in shares:
            share.start_at(epoch)
        assert [one + two for one, two in zip(*shares, strict=True)] == keys
    assert drawn == {False, True}
    assert mirrored > 5


@pytest.mark.parametrize(
    ("transforms", "expected"),
    [
        (["D4"], True),
        ([{"D4": {"p": 0.5}}], False),
        (["HorizontalFlip"], False),
        ([], False),
        (["D4", "IoUCrop", {"ResizeWithin": {"long": 64}}, "ColorJitter"], True),
        ([{"RandomCrop": {"height": 20, "width": 30}}, "D4"], True),
        (["D4", {"RandomCrop": {"height": 20, "width": 30}}], False),
        (["D4", {"Resize": {"height": 20, "width": 30}}], False),
        (["D4", {"LongestMaxSize": {"max_size": 40}}, "NoOp"], True),
        (["D4", {"LongestMaxSize": {"max_size_hw": [20, 40]}}], False),
    ],
)
def test_only_d4_of_every_image_leaves_no_side_up(transforms, expected):
    assert Pipeline(transforms, 0.3, "train").has_no_side_up == expected


def test_sample_carries_what_is_annotated(tmp_path):
    records = make_set(tmp_path, 6)
    sample = DetectionDataset(records, Pipeline([], 0.0, "eval"), 0).sample(0, 5)
    assert (sample.index, sample.original_size, sample.image.shape) == (5, (40, 40), (40, 40, 3))
    np.testing.assert_allclose(sample.boxes, [[2, 3, 30, 38], [3, 3, 31, 38]], atol=1e-4)
    assert sample.labels.tolist() == [0, 1]
    assert sample.ignore.tolist() == [False, True]


def test_boxes_that_a_crop_leaves_keep_their_classes_and_marks(tmp_path):
    """The first box is dropped, the second is a crowd of another class, the third reaches over the edge."""
    write_image(tmp_path / "a.png", 100, 100)
    objects = [
        Annotation("", (60.0, 0.0, 90.0, 30.0), label=0),
        Annotation("", (0.0, 0.0, 20.0, 20.0), label=1, ignore=True),
        Annotation("", (10.0, 10.0, 55.0, 40.0), label=2),
    ]
    image = AnnotatedImage(1, tmp_path / "a.png", (100, 100), objects)
    records = pack_set([image], ("cat", "dog", "yak"), (1, 2, 3), "the test")
    crop = [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 50, "y_max": 50}}]
    sample = DetectionDataset(records, Pipeline(crop, 0.3, "the test"), 0).sample(0, 0)
    left = zip(sample.labels.tolist(), sample.ignore.tolist(), sample.boxes.round(3).tolist(), strict=True)
    assert sorted(left) == [(1, True, [0, 0, 20, 20]), (2, False, [10, 10, 50, 40])]


def test_a_crowd_stays_however_little_of_it_a_crop_leaves(tmp_path):
    write_image(tmp_path / "a.png", 100, 100)
    crowd = Annotation("", (0.0, 0.0, 100.0, 100.0), label=0, ignore=True)
    records = pack_set(
        [AnnotatedImage(1, tmp_path / "a.png", (100, 100), [crowd])], ("cat",), (1,), "the test"
    )
    crop = [{"Crop": {"x_min": 0, "y_min": 0, "x_max": 20, "y_max": 20}}]
    sample = DetectionDataset(records, Pipeline(crop, 0.3, "the test"), 0).sample(0, 0)
    assert sample.boxes.tolist() == [[0, 0, 20, 20]] and sample.ignore.tolist() == [True]


def test_boxes_are_clipped_to_the_image_for_training(tmp_path):
    write_image(tmp_path / "0.png")
    boxes = [(-5.0, -6.0, 10.0, 12.0), (50.0, 40.0, 99.0, 98.0)]
    image = AnnotatedImage(1, tmp_path / "0.png", (48, 64), [Annotation("", box, 0) for box in boxes])
    records = pack_set([image], ("cat",), (1,), "the split")
    sample = DetectionDataset(records, Pipeline([], 0.9, "train"), 0).sample(0, 0)
    np.testing.assert_allclose(sample.boxes, [[0, 0, 10, 12], [50, 40, 64, 48]], atol=1e-4)
    assert records.boxes.tolist() == [list(box) for box in boxes]


def test_evaluation_gives_each_image_once_and_like_shapes_together(tmp_path):
    records = make_set(tmp_path, 7)
    loader = eval_loader(records, Pipeline([], 0.0, "eval"), 3, 0, False)
    batches = list(checked(loader))
    assert [len(b.indices) for b in batches] == [3, 3, 1]
    assert len(loader) == 3
    indices = torch.cat([b.indices for b in batches]).tolist()
    assert sorted(indices) == list(range(7))
    sizes = torch.cat([b.original_sizes for b in batches]).tolist()
    assert sizes == sorted(sizes) == [records.sizes[i].tolist() for i in indices]
    assert [content(b) for b in checked(loader)] == [content(b) for b in batches]


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_arrives_as_the_error_that_names_it(tmp_path, workers):
    records = make_set(tmp_path, 4)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:500])
    loader, batches = train(records, workers)
    with pytest.raises(InputError, match=r"2\.png cannot be read") as raised:
        epoch_of(loader, batches, 0)
    assert "Traceback" not in str(raised.value)


def test_image_that_changed_since_the_start_is_named(tmp_path):
    """Large sets are not read up front: the size is checked on decoding as well."""
    records = make_set(tmp_path, 2)
    write_image(tmp_path / "1.png", 64, 64)
    with pytest.raises(InputError, match=r"1\.png is 64 x 64 px.*48 x 64"):
        epoch_of(*train(records), epoch=0)
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"1\.png does not exist"):
        epoch_of(*train(records), epoch=0)


def test_a_batch_of_evaluation_has_one_shape():
    """Norms and biases give padding values: beside a wide picture, a tall one would score differently."""
    sizes = np.random.default_rng(0).integers(20, 200, (300, 2))
    batches = like_batches(sizes, 8)
    assert sorted(row for rows in batches for row in rows) == list(range(300))
    shapes = [{tuple(-(-sizes[row] // 32)) for row in rows} for rows in batches]
    assert all(len(shape) == 1 for shape in shapes)
    full = [shape for rows, shape in zip(batches, shapes, strict=True) if len(rows) == 8]
    rest = [shape for rows, shape in zip(batches, shapes, strict=True) if len(rows) < 8]
    assert full and len(rest) == len(set(map(tuple, rest)))  # at most one partial batch for each shape
    assert like_batches(sizes[:0], 8) == []


def test_batches_of_like_proportions_come_in_any_order():
    proportions = np.linspace(0.5, 2, 128)
    for epoch in range(3):
        batches = EpochBatches(128, 8, seed=0, proportions=proportions)
        batches.start_at(epoch)
        means = [proportions[[key.row for key in batch]].mean() for batch in batches]
        assert (np.diff(means) > 0).any() and (np.diff(means) < 0).any()


@pytest.mark.parametrize(("length", "batch_size", "sizes"), [(70, 4, [4] * 17), (3, 8, [3]), (8, 8, [8])])
def test_like_proportions_share_a_batch_where_the_set_is_no_multiple_of_it(length, batch_size, sizes):
    """Every image at most once; which are left out varies from epoch to epoch, whatever their proportions."""
    proportions = np.random.default_rng(0).uniform(0.5, 2, length)
    batches = EpochBatches(length, batch_size, seed=0, proportions=proportions)
    left_out = set()
    for epoch in range(40):
        batches.start_at(epoch)
        found = list(batches)
        assert [len(batch) for batch in found] == sizes
        rows = {key.row for batch in found for key in batch}
        assert len(rows) == sum(sizes) and rows <= set(range(length))
        left_out |= set(range(length)) - rows
    assert len(left_out) > 40 if length > sum(sizes) else not left_out


def test_like_proportions_share_a_batch():
    """Every image once; another grouping in every epoch; far less padding than at random."""
    rng = np.random.default_rng(0)
    width = rng.uniform(300, 900, 1000)
    proportions = rng.permutation(600 / width)

    def padding(batches):
        """Area of the padded batches over that of the images, all of which are 1 wide."""
        shapes = [proportions[[key.row for key in batch]] for batch in batches]
        return sum(len(shape) * shape.max() for shape in shapes) / sum(shape.sum() for shape in shapes)

    at_random = EpochBatches(1000, 8, seed=1)
    grouped = EpochBatches(1000, 8, seed=1, proportions=proportions)
    seen = set()
    for epoch in range(3):
        for batches in (at_random, grouped):
            batches.start_at(epoch)
        rows = [key.row for batch in grouped for key in batch]
        assert sorted(rows) == list(range(1000))
        assert padding(grouped) < 1 + 0.15 * (padding(at_random) - 1)
        seen |= {tuple(sorted(key.row for key in batch)) for batch in grouped}
        grouped.start_at(epoch, 40)
        assert [key.row for batch in grouped for key in batch] == rows[320:]
        shares = [EpochBatches(1000, 8, 1, 1, rank, 2, proportions) for rank in range(2)]
        for share in shares:
            share.start_at(epoch)
        dealt = [one + other for one, other in zip(*shares, strict=True)]
        assert [key.row for batch in dealt for key in batch] == rows
    assert len(seen) == 3 * 125


def sample(index, height, width, boxes, labels=(), ignore=()):
    pixels = np.random.default_rng(index).integers(1, 256, (height, width, 3), dtype=np.uint8)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(
        index,
        index,
        pixels,
        (2 * height, 2 * width),
        boxes,
        np.array(labels, np.int64),
        np.array(ignore, bool),
    )


def test_collate_pads_images_and_boxes():
    """By hand: 33 x 20 and 32 x 50 px need 64 x 64; one and two boxes need two places."""
    one = sample(4, 33, 20, [[1, 2, 3, 4]], [7], [True])
    two = sample(9, 32, 50, [[5, 6, 7, 8], [0, 1, 9, 9]], [2, 3], [False, True])
    batch = collate([one, two])
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for got, given in zip(batch.images, (one.image, two.image), strict=True):
        expected = np.zeros((64, 64, 3), np.uint8)
        expected[: given.shape[0], : given.shape[1]] = given
        np.testing.assert_array_equal(got.permute(1, 2, 0).numpy(), expected)
    assert batch.indices.tolist() == [4, 9]
    assert batch.sizes.tolist() == [[33, 20], [32, 50]]
    assert batch.original_sizes.tolist() == [[66, 40], [64, 100]]
    assert batch.boxes.tolist() == [[[1, 2, 3, 4], [0, 0, 0, 0]], [[5, 6, 7, 8], [0, 1, 9, 9]]]
    assert batch.labels.tolist() == [[7, 0], [2, 3]]
    assert batch.valid.tolist() == [[True, False], [True, True]]
    assert batch.ignore.tolist() == [[True, False], [False, True]]


def test_multiples_of_32_are_not_padded():
    assert collate([sample(0, 32, 64, [])]).images.shape == (1, 3, 32, 64)


def test_batch_without_any_box_has_no_places():
    batch = collate([sample(0, 32, 32, []), sample(1, 32, 32, [])])
    assert batch.boxes.shape == (2, 0, 4)
    assert batch.labels.shape == batch.valid.shape == batch.ignore.shape == (2, 0)
    assert (batch.boxes.dtype, batch.labels.dtype, batch.valid.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


def test_empty_images_go_through_training(tmp_path):
    write_image(tmp_path / "0.png")
    records = pack_set([AnnotatedImage(1, tmp_path / "0.png", (48, 64))], ("cat",), (1,), "the split")
    loader, batches = train(records, transforms=["IoUCrop", {"ZoomOut": {"p": 1.0}}, "HorizontalFlip"])
    (batch,) = epoch_of(loader, batches, 0)
    assert batch.boxes.shape == (1, 0, 4)
    assert not batch.valid.any()
