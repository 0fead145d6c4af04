"""Building the parts of a training from the configuration: no key is read and then forgotten."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.cache import RamCache
from data.feed import checked
from data.loader import DetectionDataset
from detector.config import ModelConfig
from detector.training import assembly
from detector.training.assembly import Parts
from detector.training.assembly_checks import refuse_another_set
from detector.training.optimizer import epoch_scales
from detector.training.processes import Processes
from detector.training.trainer import Trainer
from errors import InputError
from tests.builders import small_coco, write_image
from tests.runs import tiny_config

# Each differs from its default, and from the default of the function that takes it.
WORDS = (
    "data.group_by_shape=true",
    "data.one_orientation=true",
    "data.on_error=skip",
    "data.max_skipped=1",
    "schedule.image_scales=[0.5,1]",
    "data.cache=ram",
    "data.transforms.train=[{Crop: {x_max: 44, y_max: 48}}]",
    "data.transforms.min_visibility=0.7",
    "model.prior=0.2",
    "train.checkpoint_activations=true",
    "train.ema_decay=0.5",
    "optimizer.backbone_lr_factor=0.25",
    "optimizer.momentum=0.5",
    "optimizer.weight_decay=0.25",
    "optimizer.decay_norm_and_bias=false",
    "optimizer.clip_norm=7",
    "eval.batch_size=3",
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    return Trainer(tiny_config(small_coco(folder / "set", 8), folder / "run", *WORDS), "test").parts


def dataset_of(loader: DataLoader) -> DetectionDataset:
    assert isinstance(loader.dataset, DetectionDataset)
    return loader.dataset


def test_the_data_are_taken_as_configured(parts: Parts) -> None:
    dataset = dataset_of(parts.loader)
    assert isinstance(dataset.cache, RamCache)
    assert parts.batches.proportions is not None
    assert np.array_equal(parts.batches.proportions, np.full(8, 48 / 64))
    assert {*parts.batches.scales} == {0.5, 1.0}
    uprights = {key.upright for batch in parts.batches for key in batch}
    assert uprights and uprights <= {True, False}
    # The crop at x = 44 leaves 0.58 of the cat, 24 px wide from x = 30: more than the default requires.
    assert dataset.sample(0, 0).labels.tolist() == [1]
    _, batches = parts.validation.time_batch(parts.learner.evaluated)
    assert batches == 3  # of 8 images, 3 at a time


def test_images_that_cannot_be_read_are_passed_over_as_often_as_configured(tmp_path: Path) -> None:
    words = ("data.on_error=skip", "data.max_skipped=1", "data.transforms.train=[]")
    root = small_coco(tmp_path / "set", 8)
    parts = Trainer(tiny_config(root, tmp_path / "run", *words), "test").parts
    (root / "images" / "2.png").write_bytes(b"no picture")
    assert len(list(checked(parts.loader, parts.skipped))) == 4
    (root / "images" / "5.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"more than data\.max_skipped=1 training images"):
        list(checked(parts.loader, parts.skipped))


def test_images_that_are_lost_at_the_start_are_passed_over_too(tmp_path: Path, caplog) -> None:
    """Empty, as an interrupted download leaves them, or missing: a run can go on without them."""
    root = small_coco(tmp_path / "set", 8)
    (root / "images" / "2.png").write_bytes(b"")
    (root / "images" / "5.png").unlink()
    evaluated = root / "annotations" / "val.json"  # images of evaluation must all be there
    content = json.loads(evaluated.read_text())
    content["images"] = [one for one in content["images"] if one["file_name"] not in ("2.png", "5.png")]
    kept = {one["id"] for one in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    evaluated.write_text(json.dumps(content))
    words = ("data.on_error=skip", "data.check=false", "data.transforms.train=[]")
    config = tiny_config(root, tmp_path / "run", *words, "data.max_skipped=2")
    parts = Trainer(config, "test").parts
    (said,) = [message for message in caplog.messages if "cannot be read" in message]
    assert said.startswith("data.on_error=skip: 2 of the training images cannot be read: image ")
    assert "5.png does not exist" in said and "2.png cannot be read" in said
    assert len(parts.train_set) == 8
    assert sum(len(batch.indices) for batch in checked(parts.loader, parts.skipped)) == 8
    with pytest.raises(InputError, match=r"more than data\.max_skipped=1 training images .* and 1 more"):
        Trainer(tiny_config(root, tmp_path / "run", *words, "data.max_skipped=1"), "test")
    with pytest.raises(InputError, match=r"image .*5\.png does not exist"):
        Trainer(tiny_config(root, tmp_path / "run", "data.check=false"), "test")


def test_processes_that_have_read_different_sets_do_not_train(parts: Parts) -> None:
    """For example if one machine cannot read an image and leaves it out."""
    mains: list[str] = []
    main = SimpleNamespace(from_main=lambda make: mains.append(make()) or mains[0], rank=0)
    refuse_another_set(parts.train_set, "train", main)
    other = SimpleNamespace(from_main=lambda make: mains[0], rank=1)
    refuse_another_set(parts.train_set, "train", other)
    lacking = replace(parts.train_set, files=parts.train_set.files[1:])
    with pytest.raises(InputError, match=r"data\.splits\.train: process 1 finds different images"):
        refuse_another_set(lacking, "train", other)


@pytest.mark.parametrize(
    ("train", "evaluation", "said"),
    [(320, 128, True), (128, 320, True), (320, 320, False), ([240, 480], 512, False), ([64, 128], 320, True)],
)
def test_objects_of_another_size_in_evaluation_are_said(
    tmp_path: Path, train: int | list[int], evaluation: int, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    words = [
        f"data.transforms.{key}=[{{ResizeWithin: {{long: {long}}}}}]"
        for key, long in (("train", train), ("eval", evaluation))
    ]
    Trainer(tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", "data.check=true", *words), "test")
    assert any("a different size than training" in message for message in caplog.messages) == said


@pytest.mark.parametrize(("evaluation", "said"), [("[]", True), ("[{ResizeWithin: {long: 192}}]", False)])
def test_crops_that_are_enlarged_want_images_that_are(
    tmp_path: Path, evaluation: str, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Images of 64 px: crops of 32 resized to 96 are three times as large, as are images resized to 192."""
    crop = "{RandomCrop: {height: 32, width: 32}}, {ResizeWithin: {long: 96}}"
    words = (f"data.transforms.train=[{crop}]", f"data.transforms.eval={evaluation}", "data.check=true")
    Trainer(tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", *words), "test")
    assert any("a different size than training" in message for message in caplog.messages) == said


def test_more_objects_than_can_be_found_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two in each image of this set, and none in the last, which a crowd fills."""
    root = small_coco(tmp_path / "set", 4)
    path = root / "annotations" / "val.json"
    content = json.loads(path.read_text())
    last = content["images"][-1]["id"]
    for one in content["annotations"]:
        one["iscrowd"] = int(one["image_id"] == last)
    path.write_text(json.dumps(content))
    objects = [
        sum(one["image_id"] == image["id"] and not one["iscrowd"] for one in content["annotations"])
        for image in content["images"]
    ]
    for limit in (max(objects), max(objects) - 1):
        caplog.clear()
        Trainer(tiny_config(root, tmp_path / "run", f"eval.detections_per_img={limit}"), "test")
        said = [message for message in caplog.messages if "detections_per_img" in message]
        assert len(said) == (limit < max(objects))
    assert (
        f"{objects.count(max(objects))} validation images have more objects, up to {max(objects)}" in said[0]
    )


def test_both_sets_are_compared_with_the_main_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {}
    monkeypatch.setattr(
        "detector.training.assembly.refuse_another_set",
        lambda records, split, _: compared.update({split: len(records)}),
    )
    root = small_coco(tmp_path / "set", 6)
    words = ("data.splits.train=[train, val]", "data.check=false")
    Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    assert compared == {"train": 12, "val": 6}


def test_a_crop_that_does_not_fit_the_narrowest_image_is_told_at_the_start(tmp_path: Path) -> None:
    """The narrowest image does not have the smallest area, and not every image is cropped."""
    root = small_coco(tmp_path / "set", 4)
    write_image(root / "images" / "1.png", 900, 30)
    for split in ("train", "val"):
        path = root / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        content["images"][1].update(height=900, width=30)
        path.write_text(json.dumps(content))
    crop = "data.transforms.train=[{RandomCrop: {height: 40, width: 40, p: 0.5}}]"
    with pytest.raises(InputError, match="fail on an image of 30 x 900 px"):
        Trainer(tiny_config(root, tmp_path / "run", crop), "test")
    whole = "data.transforms.train=[{RandomCrop: {height: 40, width: 30, p: 0.5}}]"
    Trainer(tiny_config(root, tmp_path / "run", whole), "test")


def test_the_model_is_made_as_configured(parts: Parts) -> None:
    model = parts.learner.model
    assert model.backbone.checkpoint_activations
    assert model.class_head.output.bias.sigmoid().tolist() == pytest.approx(
        [0.2] * 18
    )  # 9 anchors, 2 classes


def test_the_weights_are_moved_as_configured(parts: Parts) -> None:
    learner = parts.learner
    learner.begin(lr=2.0)
    backbone = set(learner.model.backbone.parameters())
    seen = []
    for group in learner.optimizer.param_groups:
        assert group["momentum"] == 0.5
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.25 if parameter.dim() > 1 else 0)
            assert group["lr"] == (0.5 if parameter in backbone else 2.0)
        seen += group["params"]
    assert len(seen) == len(set(seen)) and set(seen) == {
        p for p in learner.model.parameters() if p.requires_grad
    }
    assert backbone & set(seen) and set(seen) - backbone
    assert learner.clip_norm == 7
    assert learner.average is not None and learner.average.decay == 0.5


@pytest.mark.parametrize(
    ("amp", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16"), (None, "float32")]
)
def test_the_precision_is_said_by_the_name_that_it_has_in_the_configuration(
    parts: Parts, amp: torch.dtype | None, name: str
) -> None:
    assert replace(parts, amp=amp).described("resnet18", Processes()).endswith(f" on cpu in {name}")


def test_batch_norm_is_tried_on_the_smallest_image_of_all_epochs(tmp_path: Path) -> None:
    """Half of 65 px is 32: one location in the deepest features, with one image at a time."""
    words = (
        "model.norm=batch",
        "train.batch_size=1",
        "data.transforms.train=[{Resize: {height: 65, width: 65}}]",
    )
    root = small_coco(tmp_path / "set", 4)
    scales = "schedule.image_scales=[0.5,1]"
    Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    Trainer(
        tiny_config(root, tmp_path / "run", *words, scales, "train.epochs=1"), "test"
    )  # at full size only
    with pytest.raises(InputError, match=r"model\.norm=batch .* schedule\.image_scales"):
        Trainer(tiny_config(root, tmp_path / "run", *words, scales, "train.epochs=2"), "test")


@pytest.mark.parametrize(
    ("scales", "epochs", "expected"),
    [
        ([1.0], 3, [1.0, 1.0, 1.0]),
        ([0.5, 0.75, 1.0], 6, [0.5, 0.5, 0.75, 0.75, 1.0, 1.0]),
        ([0.5, 0.75, 1.0], 4, [0.5, 0.75, 1.0, 1.0]),
        ([0.5, 0.75, 1.0], 1, [1.0]),
        ([0.5, 1.0], 0, [1.0]),
    ],
)
def test_every_scale_has_its_part_of_the_epochs(
    scales: list[float], epochs: int, expected: list[float]
) -> None:
    assert epoch_scales(scales, epochs) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["schedule.name=multistep", "schedule.milestones=[1, 2, 3]", "train.epochs=2"],
            ["before the learning rate falls at 2 and 3"],
        ),
        (["schedule.name=multistep", "schedule.milestones=[1]", "train.epochs=2"], []),
        (["schedule.image_scales=[0.5,0.75,1]", "train.epochs=2"], ["2 epochs are too few to use 0.5"]),
        (["schedule.image_scales=[0.5,0.5,1,1]", "train.epochs=2"], []),
        (["schedule.name=cosine", "schedule.milestones=[7]"], []),
        (
            ["schedule.warmup_steps=5", "train.epochs=2"],
            ["schedule.warmup_steps=5: the training has only 4 steps"],
        ),
        (
            ["schedule.warmup_steps=4", "train.epochs=2"],
            ["schedule.warmup_steps=4: the training has only 4 steps"],
        ),
        (["schedule.warmup_steps=3", "train.epochs=2"], []),
        (  # steps of the optimizer, not of the micro-batches
            ["schedule.warmup_steps=4", "train.epochs=2", "train.accumulate=2"],
            ["schedule.warmup_steps=4: the training has only 4 steps"],
        ),
        (["schedule.warmup_steps=4", "schedule.milestones=[1]", "train.epochs=0"], []),
    ],
)
def test_a_schedule_longer_than_the_training_is_said(
    tmp_path: Path, words: list[str], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = small_coco(tmp_path / "set", 4)
    Trainer(
        tiny_config(root, tmp_path / "run", "schedule.warmup_steps=0", "train.batch_size=2", *words), "test"
    )
    of_schedule = [message for message in caplog.messages if message.startswith("schedule.")]
    assert len(of_schedule) == len(said)
    assert all(one in message for one, message in zip(said, of_schedule, strict=True))


@pytest.mark.parametrize(
    ("images", "words", "said"),
    [
        (
            6,
            "train.batch_size=8",
            "batch_size=8: an epoch has only 6 images, so each step uses all of them; ",
        ),
        (
            6,
            "train.batch_size=8 optimizer.lr_for_batch=2",
            "of them, while the learning rate is scaled for more; set",
        ),
        (6, "train.batch_size=4", "batch_size=4: each epoch leaves out 2 of its 6 images"),
        (7, "train.batch_size=8 train.accumulate=2", "set train.batch_size=6"),
        (6, "train.batch_size=3", ""),
        (21, "train.batch_size=4", ""),  # a remainder of one
        (6, "train.batch_size=8 train.epochs=0", ""),
    ],
)
def test_batches_that_do_not_fit_the_set_are_said(
    tmp_path: Path, images: int, words: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_coco(tmp_path / "set", images)
    Trainer(tiny_config(root, tmp_path / "run", *words.split()), "test")
    of_batches = [message for message in caplog.messages if message.startswith("train.batch_size")]
    assert len(of_batches) == bool(said) and said in "".join(of_batches)


def test_a_high_score_threshold_is_warned_of_where_scores_have_no_scale(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_coco(tmp_path / "set", 4)
    for words, said in (
        (["eval.score_threshold=0.5"], True),
        (["eval.score_threshold=0.05"], False),
        (["eval.score_threshold=0.5", "loss.name=focal"], False),
    ):
        caplog.clear()
        Trainer(tiny_config(root, tmp_path / "run", *words), "test")
        assert ("eval.score_threshold=0.5 applies to raw scores" in caplog.text) == said


@pytest.mark.parametrize(
    ("anchors", "key"), [({"sizes": 5 * [[8, 8]]}, "sizes"), ({"ratios": [1, 0.5, 1]}, "ratios")]
)
def test_anchors_that_are_there_twice_are_refused_to_new_runs_alone(anchors: Any, key: str) -> None:
    small = {"backbone": "resnet18", "pyramid_channels": 8, "head_width": 8, "head_depth": 1}
    config = ModelConfig(**small, anchors=anchors, pretrained=False, norm="batch", frozen_stages=0)
    with pytest.raises(InputError, match=rf"^model\.anchors\.{key}: a number of .* appears twice"):
        assembly.build_initial_model(config, ["cat"], fresh=True)
    assembly.build_initial_model(config, ["cat"], fresh=False)


def test_group_norm_on_frozen_imagenet_weights_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ImageNet's weights cannot be fetched here; the warning depends on the settings alone."""
    monkeypatch.setattr(assembly, "build_model", lambda config, classes, pretrained: None)
    for norm, frozen, warned in (("group", 2, True), ("group", 0, False), ("frozen", 2, False)):
        caplog.clear()
        assembly.build_initial_model(ModelConfig(norm=norm, frozen_stages=frozen), ["cat"], fresh=True)
        assert ("cannot adapt to it" in caplog.text) == warned
