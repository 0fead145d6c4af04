"""The configuration: errors that name the key and the remedy, inheritance, overrides, the shipped files."""

import os
import re
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.config import Config
from detector.config.file import _loaded, apply_overrides, dump_config, load_config, parse_config
from errors import InputError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(values: Any) -> str:
    with pytest.raises(InputError) as caught:
        parse_config(values, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ") and "\n" not in message
    return message


# ------------------------------------------------------------------------------ unknown keys


@pytest.mark.parametrize(
    ("values", "wrong", "nearest"),
    [
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate", None),
        ({"optimizer": {"momentun": 0.9}}, "optimizer.momentun", "optimizer.momentum"),
        ({"train": {"batchsize": 4}}, "train.batchsize", "train.batch_size"),
        ({"model": {"anchors": {"size": []}}}, "model.anchors.size", "model.anchors.sizes"),
        ({"train": {"lr": 0.1}}, "train.lr", "optimizer.lr"),
        ({"model": {"lr": 0.1}}, "model.lr", "optimizer.lr"),
        ({"train": {"nms_threshold": 0.5}}, "train.nms_threshold", "eval.nms_threshold"),
        ({"loss": {"positive_iou": 0.5}}, "loss.positive_iou", "matcher.positive_iou"),
        ({"lr": 0.1}, "lr", "optimizer.lr"),
    ],
)
def test_unknown_key_names_the_nearest_valid_one(values: Any, wrong: str, nearest: str | None) -> None:
    message = refusal(values)
    assert f"unknown configuration key '{wrong}'" in message
    if nearest:
        assert f"did you mean '{nearest}'" in message


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("data=coco", "it is a group of keys: data.format, data.root, "),
        ("data=coco.yaml", "for the YOLO set of a data.yaml, use data.format=yolo data.root=coco.yaml"),
        ("model=yolo.pt", "for initial weights, use model.init=yolo.pt"),
        ("loss=focal", "it is a group of keys: loss.name, "),
        ("model.anchors=[1]", "it is a group of keys: model.anchors.sizes, model.anchors.ratios, ..."),
        ("optimizer.learning_rate=1", "use optimizer.lr"),
        ("eval.max_dets=300", "use eval.detections_per_img"),
        (
            "data.mosaic=1",
            "to combine four images into one, begin data.transforms.train with {Mosaic: {p: 0.5}}",
        ),
        ("data.fliplr=0.5", "list augmentations in data.transforms.train"),
        ("train.early_stopping=5", "use train.patience"),
        ("loss.class_weights=[1, 2]", "there are none; a ranking loss with loss.class_by_class=true"),
        ("optimizer.decay=1", "did you mean 'optimizer.weight_decay'?"),
        ("data.size=1", "did you mean 'data.image_size'?"),
        ("train.checkpoint=1", "did you mean 'train.checkpoint_activations'?"),
        ("eval.topk=1", "did you mean 'eval.topk_candidates'?"),
        ("train.log_interval=1", "did you mean 'train.log_every'?"),
        ("anchors=[1]", "it is a group of keys: model.anchors.sizes"),
        # A key with all the words; a group; words of another trainer; the right name in the wrong section.
        ("loss.gamma=2", "did you mean 'loss.focal_gamma'?"),
        ("loss.focal.gamma=2", "did you mean 'loss.focal_gamma'?"),
        ("model.anchor_sizes=[1]", "did you mean 'model.anchors.sizes'?"),
        ("model.anchors.scales=[1]", "did you mean 'model.anchors.sizes'?"),
        ("model.anchor=[1]", "did you mean 'model.anchors'?"),
        ("data.transform=[]", "did you mean 'data.transforms'?"),
        ("data.split=x", "did you mean 'data.splits'?"),
        ("run.name=x", "use run.dir"),
        ("model.name=x", "use model.backbone"),
        ("data.type=x", "use data.format"),
        ("train.max_steps=9", "use train.epochs"),
        ("optimizer.batch=9", "use train.batch_size"),
        ("eval.batch=9", "did you mean 'eval.batch_size'?"),
        ("train.warmup=5", "did you mean 'schedule.warmup_steps'?"),
        ("data.batch_size=5", "did you mean 'train.batch_size'?"),
        ("data.augmentations=[]", "list augmentations in data.transforms.train"),
        ("optimizer.eps=1e-8", "optimizer has name, lr, lr_for_batch, "),
        # A common section alone does not make names similar.
        ("train.something=1", "docs/configuration.md lists all keys"),
        ("data.wanted=1", "docs/configuration.md lists all keys"),
    ],
)
def test_what_other_trainers_call_it_is_answered(word: str, answer: str) -> None:
    with pytest.raises(InputError) as raised:
        apply_overrides({}, [word])
    key = word.partition("=")[0]
    assert str(raised.value).startswith(f"unknown configuration key '{key}'; {answer}")


def test_unknown_section_is_refused() -> None:
    assert "'trian'" in refusal({"trian": {"epochs": 3}})


def test_unknown_override_names_the_nearest_valid_one() -> None:
    with pytest.raises(InputError, match=r"'optimizer\.lrr'.*did you mean 'optimizer\.lr'"):
        apply_overrides({}, ["optimizer.lrr=0.1"])


# ------------------------------------------------------------------------------ wrong values


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"train": {"epochs": -1}}, "train.epochs"),
        ({"train": {"epochs": 1.5}}, "train.epochs"),
        ({"train": {"batch_size": [4]}}, "train.batch_size"),
        ({"optimizer": {"lr": -0.1}}, "optimizer.lr"),
        ({"schedule": {"image_scales": []}}, "schedule.image_scales"),
        ({"schedule": {"image_scales": [0, 1]}}, "schedule.image_scales[0]"),
        ({"schedule": {"image_scales": [1, 0.5]}}, "schedule.image_scales"),
        ({"schedule": {"image_scales": [0.5, 0.75]}}, "schedule.image_scales"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"optimizer": {"lr": None}}, "optimizer.lr"),
        ({"optimizer": {"clip_norm": "x"}}, "optimizer.clip_norm"),
        ({"model": {"backbone": "resnet51"}}, "model.backbone"),
        ({"model": {"base_channels": 12, "pretrained": False}}, "model.base_channels"),
        ({"model": {"base_channels": 32}}, "model.base_channels"),  # no ImageNet weights have this width
        ({"model": {"box_std": [0.1, 0.1, 0.2]}}, "model.box_std"),
        ({"model": {"box_std": [0.1, 0.1, 0.2, "x"]}}, "model.box_std[3]"),
        ({"model": {"anchors": {"ratios": "x"}}}, "model.anchors.ratios"),
        ({"model": {"anchors": {"sizes": [[1], [2]]}}}, "model.anchors.sizes"),
        ({"model": {"anchors": {"sizes": [[1], [2], [3], [4], [5, 6]]}}}, "model.anchors.sizes"),
        ({"model": {"anchors": {"sizes": 5 * [[4]], "ratios": [1, 0.05]}}}, "model.anchors.sizes"),
        ({"model": {"anchors": {"sizes": [*4 * [[4]], [1e30]]}}}, "model.anchors.sizes"),
        ({"model": {"head_norm": "group", "head_width": 1}}, "model.head_width"),
        ({"schedule": {"gamma": 1e300}}, "schedule.gamma"),
        ({"data": {"splits": {"train": 5}}}, "data.splits.train"),
        ({"data": {"transforms": {"train": "HorizontalFlip"}}}, "data.transforms.train"),
        ({"data": {"transforms": {"train": [5]}}}, "data.transforms.train[0]"),
        ({"data": {"transforms": {"train": ["D4", {"IoUCrop": 3}]}}}, "data.transforms.train[1]"),
        (
            {"data": {"transforms": {"eval": [{"ResizeWithin": None, "long": 320}]}}},
            "data.transforms.eval[0]",
        ),
        ({"data": {"splits": {"train": ["a", 2012]}}}, "data.splits.train[1]"),
        ({"data": {"splits": {"train": []}}}, "data.splits.train"),
        ({"matcher": {"negative_iou": 0.6, "positive_iou": 0.5}}, "matcher.negative_iou"),
        ({"loss": {"name": "alrp", "box": "smooth_l1"}}, "loss.box"),
        ({"train": 5}, "train"),
        ({"train": [1]}, "train"),
    ],
)
def test_wrong_value_names_the_path_of_its_key(values: Any, key: str) -> None:
    assert refusal(values).startswith(f"my.yaml: {key}: ")


def test_a_fault_of_the_file_is_not_blamed_on_the_command_line(tmp_path: Path) -> None:
    """Even if the override is in the same section."""
    path = write(tmp_path, "a.yaml", "loss: {delta: -1}\n")
    with pytest.raises(InputError, match=r"a\.yaml: loss\.delta: "):
        load_config(path, ["loss.name=focal"])


@pytest.mark.parametrize("value", ["5", "[]", "epochs 4", "[{epochs: 4}]"])
def test_what_is_no_section_is_refused_though_the_base_has_one(tmp_path: Path, value: str) -> None:
    write(tmp_path, "b.yaml", "train: {epochs: 3}\n")
    path = write(tmp_path, "a.yaml", f"base: b.yaml\ntrain: {value}\n")
    for words in ([], ["train.batch_size=2"]):
        with pytest.raises(InputError, match=r"a\.yaml: train: must hold settings"):
            load_config(path, words)


def test_a_contradiction_in_the_file_is_not_blamed_on_another_key(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "matcher: {negative_iou: 0.6, positive_iou: 0.5}\n")
    with pytest.raises(InputError, match=r"a\.yaml: matcher\.negative_iou: 0\.6 must not"):
        load_config(path, ["matcher.name=atss"])
    with pytest.raises(InputError, match=r"on the command line: matcher\.negative_iou: 0\.6 must not"):
        load_config(path, ["matcher.positive_iou=0.4"])


def test_an_alias_that_is_used_often_is_looked_at_once() -> None:
    """Ten million references to eight lists."""
    names = "abcdefgh"
    lines = [f"{names[0]}: &{names[0]} [1]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in pairwise(names)]
    assert _loaded("\n".join(lines))["h"][0][0][0][0][0][0][0] == [1]


def test_the_largest_seed_is_told_as_it_is() -> None:
    """pydantic's own message would round it to a float."""
    assert "less than 9223372036854775808" in refusal({"train": {"seed": 2**63}})


def test_where_several_types_are_possible_the_one_that_was_given_is_explained() -> None:
    assert "at least 1 item" in refusal({"data": {"splits": {"train": []}}})
    assert "valid string" in refusal({"data": {"splits": {"train": 5}}})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"optimizer": {"lr": True}}, "optimizer.lr"),
        ({"train": {"epochs": True}}, "train.epochs"),
        ({"optimizer": {"clip_norm": True}}, "optimizer.clip_norm"),
        ({"data": {"workers": False}}, "data.workers"),
        ({"model": {"anchors": {"ratios": [True]}}}, "model.anchors.ratios"),
    ],
)
def test_bool_is_no_number(values: Any, key: str) -> None:
    assert refusal(values).startswith(f"my.yaml: {key}")


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-4, without a point, as text."""
    assert yaml.safe_load("1e-4") == "1e-4"
    path = write(tmp_path, "a.yaml", "optimizer: {lr: 1e-4, clip_norm: 1e+1}\n")
    config = load_config(path, ["optimizer.weight_decay=5e-5"])
    assert (config.optimizer.lr, config.optimizer.clip_norm) == (1e-4, 10.0)
    assert config.optimizer.weight_decay == 5e-5


@pytest.mark.parametrize(
    ("key", "text"), [("data.image_size", "12:30"), ("train.epochs", "1:2:3"), ("optimizer.lr", "1:30.5")]
)
def test_sexagesimal_numbers_are_refused(key: str, text: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 12:30 as 750."""
    section, name = key.split(".")
    path = write(tmp_path, "a.yaml", f"{section}: {{{name}: {text}}}\n")
    for values in ([], [f"{key}={text}"]):
        with pytest.raises(InputError, match=rf"{key}: .*got '{re.escape(text)}'"):
            load_config(path if not values else write(tmp_path, "b.yaml", "{}\n"), values)


def test_other_numbers_of_yaml_are_read(tmp_path: Path) -> None:
    """Among them 016, which YAML 1.1 reads as 14."""
    path = write(tmp_path, "a.yaml", "train: {epochs: 0x10, batch_size: 016}\noptimizer: {lr: 0.01}\n")
    config = load_config(path, ["optimizer.weight_decay=0", "schedule.warmup_factor=0.5", "train.seed=+07"])
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (16, 16, 7)
    assert config.optimizer.lr == 0.01
    assert (config.optimizer.weight_decay, config.schedule.warmup_factor) == (0, 0.5)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_amp_can_be_named_on_the_command_line_and_in_a_file(amp: str, tmp_path: Path) -> None:
    """YAML 1.1 reads a plain `off` as false."""
    assert parse_config(apply_overrides({}, [f"train.amp={amp}"]), "x").train.amp == amp
    assert load_config(write(tmp_path, "a.yaml", f"train: {{amp: {amp}}}\n")).train.amp == amp


@pytest.mark.parametrize(
    "text",
    [
        *("a: [", "- 1", "text", "1: 2", "train: {1: 2}", "base: [a.yaml]", "a: b: c"),
        pytest.param("[" * 3000, id="deeper than Python calls itself"),
    ],
)
def test_malformed_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, "bad.yaml", text)
    with pytest.raises(InputError, match=r"bad\.yaml") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        load_config(tmp_path)


def test_parameters_beside_the_name_of_a_transform_are_told_where_they_belong() -> None:
    message = refusal({"data": {"transforms": {"eval": [{"ResizeWithin": None, "long": 320}]}}})
    assert "NAME: {parameter: value}" in message and "indented below the name" in message


def test_empty_sections_below_a_section_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("data:\n  splits:\n  transforms:\nmodel:\n  anchors:\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_empty_file_is_the_default_configuration(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "a.yaml", "")) == Config()


# ------------------------------------------------------------------------------ inheritance


def test_child_is_merged_into_its_bases_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, "root.yaml", "train: {epochs: 7, seed: 1}\nschedule: {milestones: [4, 6], gamma: 0.5}\n")
    write(tmp_path, "middle.yaml", "base: root.yaml\ntrain: {seed: 2}\nloss: {name: focal}\n")
    path = write(tmp_path / "sub", "leaf.yaml", "base: ../middle.yaml\nschedule: {milestones: [9]}\ntrain:\n")
    config = load_config(path, ["train.seed=3"])
    assert (config.train.epochs, config.train.seed, config.loss.name) == (7, 3, "focal")
    assert (config.schedule.milestones, config.schedule.gamma) == ([9.0], 0.5)


def test_null_in_a_child_replaces_a_value_of_its_base(tmp_path: Path) -> None:
    write(tmp_path, "root.yaml", "optimizer: {clip_norm: 3.0}\ndata: {splits: {test: test}}\n")
    path = write(
        tmp_path, "leaf.yaml", "base: root.yaml\noptimizer: {clip_norm: null}\ndata: {splits: {test: null}}\n"
    )
    config = load_config(path)
    assert config.optimizer.clip_norm is None and config.data.splits.test is None


@pytest.mark.parametrize("files", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
def test_circular_base_is_refused(files: dict[str, str], tmp_path: Path) -> None:
    for name, base in files.items():
        write(tmp_path, f"{name}.yaml", f"base: {base}.yaml\n")
    with pytest.raises(InputError, match="base"):
        load_config(tmp_path / "a.yaml")


def test_missing_base_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "base: gone.yaml\n")
    with pytest.raises(InputError, match=r"gone\.yaml, the base of .*a\.yaml, does not exist"):
        load_config(path)


def test_a_base_may_lie_in_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for folder in ("me", "project"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "me", "mine.yaml", "train: {epochs: 7}\n")
    path = write(tmp_path / "project", "a.yaml", "base: ~/mine.yaml\n")
    assert load_config(path).train.epochs == 7


# ------------------------------------------------------------------------------ overrides


def test_overrides_win_over_the_file_and_later_over_earlier(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "train: {epochs: 7, seed: 1}\ndata: {format: coco}\n")
    overrides = ["train.epochs=3", "train.epochs=4", "data.splits.val=[a, b]", "model.pretrained=false"]
    config = load_config(path, [*overrides, "model.anchors.ratios=[1, 2]", "data.root=a=b"])
    assert (config.train.epochs, config.train.seed, config.data.splits.val) == (4, 1, ["a", "b"])
    assert (config.model.pretrained, config.model.anchors.ratios) == (False, [1.0, 2.0])
    assert config.data.root == "a=b"


def test_a_file_of_ones_own_data_is_not_taken_for_the_demo(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", f"data: {{root: {tmp_path / 'sett'}}}\n")
    with pytest.raises(
        InputError, match=r"a\.yaml: data\.root=.*sett also needs data\.format, which is coco, voc"
    ):
        load_config(path)
    assert load_config(path, ["data.format=yolo"]).data.format == "yolo"
    path = write(tmp_path, "a.yaml", "data: {root: ~nobody-of-this-name/x}\n")
    with pytest.raises(InputError, match=r"also needs data\.format"):
        load_config(path)
    for data in ("root: datasets/shapes", "root: new, shapes_size_px: 96"):
        assert load_config(write(tmp_path, "a.yaml", f"data: {{{data}}}\n")).data.format == "shapes"
    path = write(tmp_path, "a.yaml", f"data: {{root: {tmp_path / 'sett'}}}\n")
    (tmp_path / "sett").mkdir()
    (tmp_path / "sett" / "shapes.json").touch()
    assert load_config(path).data.format == "shapes"


def test_names_that_yaml_takes_for_something_else_are_told_to_be_quoted() -> None:
    for value in ([False, True], [1, 2]):
        assert "strings only in quotes: 'no', '1'" in refusal({"data": {"classes": value}})


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs",
        "=3",
        "train.epochs 3",
        "data.classes=[",
        "",
        "train.amp=!!int ''",
        "train.amp=!!bool x",
        "train.amp=!!timestamp x",
        'train.amp="\\U00110000"',
        pytest.param("data.classes=" + "[" * 3000, id="deeper than Python calls itself"),
    ],
)
def test_malformed_override_is_refused_and_quoted(override: str) -> None:
    with pytest.raises(InputError) as caught:
        apply_overrides({}, [override])
    assert override.partition("=")[0] in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{split}/_annotations.coco.json", "2026-13-45", "a: b: c", "@x", "[", "1e3"]
)
def test_text_is_taken_as_it_is(text: str) -> None:
    """Even where YAML would read something else, or could not read it at all."""
    values = apply_overrides({}, [f"data.annotations={text}", "run.dir=null"])
    assert values == {"data": {"annotations": text}, "run": {"dir": None}}


def test_applying_overrides_leaves_the_values_given_as_they_are() -> None:
    values = {"train": {"epochs": 7}}
    assert apply_overrides(values, ["train.epochs=3"]) == {"train": {"epochs": 3}}
    assert values == {"train": {"epochs": 7}}


# ------------------------------------------------------------------------------ round trip, shipped files


def test_dump_loads_as_the_same_configuration(tmp_path: Path) -> None:
    changes = [
        "optimizer.clip_norm=0.5",
        "data.classes=['no', 'true', '1e3']",
        "train.amp=fp16",
        "run.dir=null",
    ]
    config = parse_config(apply_overrides({}, changes), "x")
    assert load_config(write(tmp_path, "dumped.yaml", dump_config(config))) == config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_file_loads_and_survives_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(write(tmp_path, "dumped.yaml", dump_config(config))) == config


def test_focal_recipe_differs_from_the_ap_recipe_in_the_loss_alone() -> None:
    by_name = {path.stem: path for path in CONFIGS}
    ap, focal = (load_config(by_name[f"coco_r50_{name}"]) for name in ("aploss", "focal"))
    assert (ap.loss.name, focal.loss.name) == ("ap", "focal")
    assert focal.model_copy(update={"loss": ap.loss}) == ap
    assert focal.loss.model_copy(update={"name": "ap"}) == ap.loss


def test_the_users_folder_may_be_called_by_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell expands ~ only at the beginning of a word, YAML never."""
    monkeypatch.setenv("HOME", "/home/me")
    words = ["run.dir=~/r", "data.root=~/set", "model.init=~/a.pt", "data.cache_dir=~/c", "data.images=~x"]
    config = parse_config(apply_overrides({}, words), "the test")
    assert (config.run.dir, config.data.root) == ("/home/me/r", "/home/me/set")
    assert config.model.init == "/home/me/a.pt"
    assert (config.data.cache_dir, config.data.images) == ("/home/me/c", "~x")
    assert parse_config({}, "the test").run.dir is None


def test_names_of_splits_may_look_like_numbers() -> None:
    words = ["data.splits.train=[2007, a]", "data.splits.val=2007", "data.splits.test=0"]
    with pytest.raises(InputError, match=r"data\.splits\.train"):
        parse_config(apply_overrides({}, words), "the test")
    splits = parse_config(apply_overrides({}, words[1:]), "the test").data.splits
    assert (splits.train, splits.val, splits.test) == ("train", "2007", "0")
    listed = parse_config(apply_overrides({}, ["data.splits.train=[a, b]"]), "the test")
    assert listed.data.splits.train == ["a", "b"]


def test_a_configuration_may_come_through_a_pipe_and_its_name_hold_an_equals_sign(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("train: {epochs: 7}",))
    writer.start()
    assert load_config(pipe).train.epochs == 7
    writer.join()
