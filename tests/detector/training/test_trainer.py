"""The training loop: what it learns, and that stopping and resuming changes nothing."""

import contextlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.feed import next_group
from detector.builders.device import build_amp
from detector.builders.network import memory_format
from detector.config import TrainConfig
from detector.config.file import dump_config
from detector.training.learner import Learner
from detector.training.monitor import Monitor, StepTimer
from detector.training.run_folder import made_with, resume_config
from detector.training.trainer import Trainer
from errors import InputError
from tests.builders import AUGMENTED, coco_dict, small_coco, write_coco, write_image
from tests.runs import OF_THE_MACHINE, difference, last, no_file_larger_than, read_metrics, tiny_config

PLAIN = "data.transforms.train=[]"
BOX = [4.0, 5.0, 30.0, 28.0]


def train(root: Path, run: Path, *overrides: str) -> Trainer:
    trainer = Trainer(tiny_config(root, run, "train.log_every=1", *overrides), "test")
    trainer.run()
    return trainer


def at_step(patch: pytest.MonkeyPatch, step: int, happens: Callable[[], Any]) -> None:
    """Makes something happen when that many steps are done and logged."""
    advance, count = Monitor.advance, itertools.count(1)

    def advance_and_happen(monitor: Monitor) -> None:
        advance(monitor)
        if next(count) == step:
            happens()

    patch.setattr(Monitor, "advance", advance_and_happen)


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("accumulate", "optimizer"), [(1, "adamw"), (2, "sgd")])
def test_resume_equals_straight_run(tmp_path: Path, accumulate: int, optimizer: str) -> None:
    """Stopped in the middle of the third epoch, after logging steps that the resumed run repeats."""
    root, straight, stopped = small_coco(tmp_path / "set", 16), tmp_path / "straight", tmp_path / "stopped"
    steps_per_epoch = 4
    words = [
        AUGMENTED,
        "train.epochs=4",
        "train.batch_size=4",
        f"train.accumulate={accumulate}",
        "train.ema_decay=0.9",
        "train.eval_every=2",
        f"optimizer.name={optimizer}",
        "optimizer.clip_norm=10",
        "schedule.name=cosine",
    ]
    train(root, straight, *words)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 2 * steps_per_epoch + 1, ctrl_c)
        train(root, stopped, *words)
    assert last(stopped)["step"] == 2 * steps_per_epoch
    assert read_metrics(stopped)[-1]["step"] == 2 * steps_per_epoch + 1

    Trainer(tiny_config(root, stopped, "train.log_every=1", *words), "test", resume=stopped).run()

    one, other = last(straight), last(stopped)
    one["config"]["run"]["dir"] = other["config"]["run"]["dir"]
    assert difference(one, other) is None
    assert difference(one["model"], one["training"]["model"]) is not None  # averaging is on
    lines = [
        [{key: v for key, v in line.items() if key not in OF_THE_MACHINE} for line in read_metrics(run)]
        for run in (straight, stopped)
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 4 * steps_per_epoch + 2


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set", 3)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(root, tmp_path / name, AUGMENTED, f"train.seed={seed}", "train.epochs=1")
    one, two, three = (last(tmp_path / name)["model"] for name in ("one", "two", "three"))
    assert difference(one, two) is None
    assert difference(one, three) is not None


def test_accumulation_steps_along_the_mean_gradient_of_its_batches(tmp_path: Path) -> None:
    """Oracle: the steps of plain SGD that each image alone would have made, from the same start."""
    contents = {
        "both": coco_dict([[BOX], [[20.0, 10.0, 40.0, 30.0]]]),
        "first": coco_dict([[BOX]]),
        "second": coco_dict([[], [[20.0, 10.0, 40.0, 30.0]]]),
    }
    contents["second"]["images"].pop(0)
    contents["second"]["annotations"][0]["category_id"] = 3  # "cat", as in "both"
    words = [PLAIN, "model.norm=frozen", "train.epochs=1", "schedule.warmup_steps=0"]
    words += ["optimizer.momentum=0", "optimizer.weight_decay=0", "optimizer.lr=0.1"]
    moved, logged = {}, {}
    for name, content in contents.items():
        root = write_coco(tmp_path / name, content, content)
        if name == "second":  # `write_coco` numbers its noise; the picture must be that of "both"
            (root / "images" / "1.png").write_bytes((tmp_path / "both" / "images" / "1.png").read_bytes())
        images = len(content["images"])
        parts = (f"train.batch_size={images}", f"train.accumulate={images}")
        trainer = Trainer(tiny_config(root, tmp_path / f"run_{name}", *parts, *words), "test")
        shares = iter((0.25, 0.75))  # all negatives take part so early: these tell the mean from either
        trainer.gradients.criterion.ranked_share = lambda *_, these=shares: torch.tensor(next(these))
        start = {key: p.detach().clone() for key, p in trainer.learner.model.named_parameters()}
        trainer.run()
        moved[name] = {key: p.detach() - start[key] for key, p in trainer.learner.model.named_parameters()}
        assert trainer.progress.step == 1
        (logged[name],) = [line for line in read_metrics(tmp_path / f"run_{name}") if "loss" in line]
        rounding = {key: 1e-7 * p.norm() for key, p in start.items()}  # of the weights that are subtracted
    for key, step in moved["both"].items():
        expected = (moved["first"][key] + moved["second"][key]) / 2
        assert (step - expected).norm() <= 1e-3 * expected.norm() + rounding[key], key
    for key in ("loss", "positives_per_image"):
        first, second = logged["first"][key], logged["second"][key]
        assert first != second  # the case can tell the mean from either
        assert logged["both"][key] == pytest.approx((first + second) / 2), key
    assert logged["both"]["ranked_negatives"] == 0.5


def test_micro_batches_that_fill_no_step_are_left_out(tmp_path: Path) -> None:
    words = ["train.batch_size=2", "train.accumulate=2", "train.epochs=2"]
    trainer = train(small_coco(tmp_path / "set", 3), tmp_path / "run", *words, "model.norm=group")
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [1, 2]
    assert trainer.total_steps == 2


@pytest.mark.parametrize(
    "words",
    [
        ("loss.name=ap", "loss.box=smooth_l1"),
        *((f"loss.name={name}", "loss.box=giou") for name in ("focal", "alrp", "rank_sort", "ce_ohem")),
    ],
)
def test_a_few_images_are_learned(tmp_path: Path, words: tuple[str, ...]) -> None:
    root = small_coco(tmp_path / "set", 5)
    repeated = "data.splits.train=[" + ",".join(["train"] * 32) + "]"
    common = [PLAIN, repeated, "train.batch_size=4", "train.epochs=1", "optimizer.name=adamw"]
    trainer = train(root, tmp_path / "run", *common, *words)
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    parts = ["loss_classification", "loss_box"]
    if "loss.name=alrp" in words:  # its localisation error is divided by the rank: as ranks fall, it rises
        parts.remove("loss_box")
    for part in parts:
        first, final = (sum(line[part] for line in some) / 5 for some in (lines[:5], lines[-5:]))
        assert final < 0.5 * first, part
    assert trainer.progress.metrics["AP50"] > 0.5


@pytest.mark.parametrize("name", ["ap", "focal"])
def test_a_batch_without_boxes_trains(tmp_path: Path, name: str) -> None:
    content = coco_dict([[BOX], []])
    root = write_coco(tmp_path / "set", content, content)
    words = [PLAIN, f"loss.name={name}", "train.batch_size=1", "train.epochs=1", "model.norm=frozen"]
    trainer = train(root, tmp_path / "run", *words)
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    (empty,) = [line for line in lines if line["positives_per_image"] == 0]
    assert empty["loss_box"] == 0
    assert (empty["loss_classification"] > 0) == (name == "focal")
    assert all(torch.isfinite(p).all() for p in trainer.learner.model.parameters())


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    """Oracle: float32; the first loss must be close to it, but not equal."""
    root = small_coco(tmp_path / "set", 3)
    losses = []
    for amp in ("bf16", "off"):
        train(root, tmp_path / amp, PLAIN, f"train.amp={amp}", "train.epochs=1")
        losses.append(read_metrics(tmp_path / amp)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


def test_resume_takes_the_settings_it_is_given_and_the_state_it_finds(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 2), tmp_path / "run"
    ended = train(root, run, PLAIN, "train.epochs=1")
    config = tiny_config(root, run, "train.epochs=1", "optimizer.weight_decay=0.5")
    resumed = Trainer(config, "test", resume=run)
    one, other = (trainer.learner.optimizer.state_dict() for trainer in (ended, resumed))
    assert [group["weight_decay"] for group in other["param_groups"]] == [0.5]
    assert difference(one["state"], other["state"]) is None
    assert ended.progress.calibration is not None
    assert resumed.progress == ended.progress
    record = (run / "config.yaml").read_text()
    resumed.run()
    assert (run / "config.yaml").read_text() == record  # no step was made with the new settings
    further = tiny_config(root, run, "train.epochs=2", "optimizer.weight_decay=0.5")
    Trainer(further, "test", resume=run).run()
    assert (run / "config.yaml").read_text() == made_with() + dump_config(further)


def test_a_resumption_warns_of_its_settings_only_where_it_changes_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, run = small_coco(tmp_path / "set", 2), tmp_path / "run"
    late = ("schedule.name=multistep", "schedule.milestones=[7]")
    Trainer(tiny_config(root, run, "train.epochs=1", *late), "test").run()
    for more, told in (("train.epochs=1", False), ("train.epochs=2", True)):
        caplog.clear()
        Trainer(tiny_config(root, run, more, *late), "test", resume=run)
        assert ("before the learning rate falls at 7" in caplog.text) == told


def test_speed_is_that_of_all_steps_since_the_line_before(tmp_path: Path) -> None:
    """On a simulated clock, step k waits k seconds for its data and takes one more.

    An epoch has three steps, every second step of the run is logged, and the time between two epochs does not
    count: steps 1 and 2, step 4, steps 5 and 6.
    """
    clock = SimpleNamespace(now=0.0, waits=itertools.count(1))
    clock.perf_counter = lambda: clock.now
    update = Learner.update

    def wait(groups: Any) -> Any:
        clock.now += next(clock.waits)
        return next_group(groups)

    def work(*arguments: Any) -> Any:
        clock.now += 1
        return update(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detector.training.trainer.time", clock)
        patch.setattr("detector.training.monitor.time", clock)
        patch.setattr("detector.training.trainer.StepTimer", lambda: StepTimer(started=clock.now))
        patch.setattr("detector.training.trainer.next_group", wait)
        patch.setattr(Learner, "update", work)
        words = ("train.epochs=2", "train.eval_every=2", "train.log_every=2")
        train(small_coco(tmp_path / "set", 6), tmp_path / "run", *words)
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    waited, seconds, steps = ([3, 4, 11], [5, 5, 13], [2, 1, 2])
    assert [line["data_wait"] for line in lines] == pytest.approx(np.divide(waited, seconds))
    assert [line["step_s"] for line in lines] == pytest.approx(np.divide(seconds, steps))
    assert [line["images_per_s"] for line in lines] == pytest.approx(2 * np.divide(steps, seconds))


def first_step(root: Path, run: Path, *overrides: str) -> dict[str, Tensor]:
    """The weights and statistics after one step of plain SGD."""
    sgd = ("optimizer.momentum=0", "optimizer.lr=1", "schedule.warmup_steps=0", "train.epochs=1")
    return train(root, run, PLAIN, *sgd, *overrides).learner.model.state_dict()


@pytest.mark.parametrize("name", ["ap", "alrp", "rank_sort", "focal"])
def test_ranking_over_micro_batches_equals_one_large_batch(tmp_path: Path, name: str) -> None:
    """Without batch statistics: the same weights after a step as from one batch of all four images."""
    root, words = small_coco(tmp_path / "set", 4), ("model.norm=group", f"loss.name={name}", "loss.box=giou")
    whole = first_step(root, tmp_path / "whole", "train.batch_size=4", *words)
    parts = ("train.batch_size=4", "train.accumulate=4")
    exact = first_step(root, tmp_path / "exact", *parts, "train.rank_accumulated=true", *words)
    apart = first_step(root, tmp_path / "apart", *parts, *words)
    for key, value in whole.items():
        torch.testing.assert_close(exact[key], value, rtol=1e-4, atol=1e-4)
    # The case is sensitive: ranking each micro-batch separately gives other weights.
    assert max(float((apart[key] - value).abs().max()) for key, value in whole.items()) > 1e-3


def test_ranking_over_micro_batches_shows_batch_norm_each_image_once(tmp_path: Path) -> None:
    """Oracle: plain accumulation, whose statistics do not depend on the loss."""
    root = small_coco(tmp_path / "set", 4)
    parts = ("train.batch_size=4", "train.accumulate=2")
    exact = first_step(root, tmp_path / "exact", *parts, "train.rank_accumulated=true")
    plain = first_step(root, tmp_path / "plain", *parts)
    statistics = [key for key in plain if "running" in key or "tracked" in key]
    assert len(statistics) > 20
    for key in statistics:
        torch.testing.assert_close(exact[key], plain[key])


@pytest.mark.parametrize("fast", [True, False])
def test_automatic_precision_is_bf16_only_on_a_cpu_that_computes_in_it(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    automatic = TrainConfig(amp="auto")
    assert build_amp(automatic, torch.device("cpu")) == (torch.bfloat16 if fast else None)
    assert build_amp(automatic, torch.device("mps")) is None
    assert build_amp(TrainConfig(amp="bf16"), torch.device("cpu")) == torch.bfloat16
    layout = torch.channels_last if fast else torch.contiguous_format
    assert memory_format(automatic, torch.device("cpu")) == layout
    assert memory_format(automatic, torch.device("cuda")) == torch.channels_last


def test_weights_of_ones_own_are_enough_to_begin_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageNet's weights are not fetched: offline this would fail, and all of them would be replaced."""

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    root = small_coco(tmp_path / "set", 4)
    first = train(root, tmp_path / "first", "train.epochs=1")
    words = ("model.pretrained=true", f"model.init={tmp_path / 'first'}/checkpoints/last.pt")
    second = Trainer(tiny_config(root, tmp_path / "second", *words), "test")
    one, other = (dict(t.learner.model.named_parameters()) for t in (first, second))
    assert difference(one, other) is None
    with pytest.raises(InputError, match=r"model\.pretrained"):
        Trainer(tiny_config(root, tmp_path / "second", words[0]), "test")


def test_batch_norm_of_a_single_value_is_refused(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "set", *2 * [coco_dict([[[4.0, 5.0, 20.0, 18.0]]] * 2, 30, 32)])
    for path in (root / "images").iterdir():
        write_image(path, 30, 32)
    for words in (("train.batch_size=1",), ("train.batch_size=2", "train.accumulate=2")):
        with pytest.raises(
            InputError, match=r"of 32 x 30 px leaves one value per channel.* model\.norm=group"
        ):
            Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    train(root, tmp_path / "run", "train.batch_size=1", "model.norm=group", "train.epochs=1")


def test_automatic_precision_needs_no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch for macOS has neither oneDNN nor its operators."""
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    monkeypatch.setattr("torch.ops.mkldnn", object())
    assert build_amp(TrainConfig(), torch.device("cpu")) is None


def diverge(trainer: Trainer) -> None:
    for group in trainer.learner.optimizer.param_groups:
        group["params"][0].data.fill_(torch.nan)


def overflow(trainer: Trainer) -> None:
    trainer.learner.model.box_head.output.bias.data.fill_(3e38)


@pytest.mark.parametrize(("spoil", "named"), [(diverge, "logits"), (overflow, "box inf")])
def test_a_loss_that_is_not_finite_stops_and_is_explained(
    tmp_path: Path, spoil: Callable[[Trainer], None], named: str
) -> None:
    content = coco_dict([[BOX], [BOX]])
    trainer = Trainer(tiny_config(write_coco(tmp_path / "set", content, content), tmp_path / "run"), "test")
    spoil(trainer)
    with pytest.raises(InputError) as caught:
        trainer.run()
    for word in ("not finite at step 1", "0.png", "1.png", "optimizer.lr"):
        assert word in str(caught.value)
    assert any(word in str(caught.value) for word in named.split("|"))


def test_a_learning_rate_far_too_high_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not finite at step [1-9].*images \d\.png, \d\.png"):
        train(small_coco(tmp_path / "set"), tmp_path / "run", "optimizer.lr=1e30")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_after_the_start_is_named_and_the_steps_before_it_are_saved(
    tmp_path: Path, workers: int
) -> None:
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    trainer = Trainer(tiny_config(root, run, f"data.workers={workers}"), "test")
    third = list(trainer.parts.batches)[2]
    image = Path(trainer.parts.train_set.files[third[0].row])
    image.write_bytes(b"no longer a picture")
    with pytest.raises(InputError, match=rf"image .*{image.name} cannot be read.*; the state is saved"):
        trainer.run()
    assert last(run)["step"] == 2


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_to_resume_from(tmp_path: Path) -> None:
    """From the middle of the second epoch on, nothing can be written: events, metrics, checkpoint."""
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    config = tiny_config(root, run, AUGMENTED, "train.epochs=2", "train.log_every=1", "train.eval_every=2")
    with contextlib.ExitStack() as end, pytest.raises(InputError, match=f"cannot write .*{run.name}"):
        end.enter_context(contextlib.redirect_stdout(io.StringIO()))  # pytest's stdout is a file
        patch = end.enter_context(pytest.MonkeyPatch.context())
        at_step(patch, 3, lambda: end.enter_context(no_file_larger_than(0)))
        Trainer(config, "test").run()
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["last.pt"]
    assert last(run)["step"] == 2
    assert resume_config(run) == config.model_dump(mode="json")
    resumed = Trainer(config, "test", resume=run)
    resumed.run()
    assert resumed.progress.step == 4


def test_a_disk_without_room_for_the_next_checkpoint_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is written beside the last two: one after each epoch, and one more after the evaluation."""
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    room = [10**12, 3, 3, 10**12, 3, 3]
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=room.pop(0)))
    Trainer(tiny_config(root, run, "train.epochs=5", "train.eval_every=5"), "test").run()
    told = [record.message for record in caplog.records if "the disk has" in record.message]
    assert room == [] and len(told) == 2
    size = (run / "checkpoints" / "last.pt").stat().st_size
    assert f"the disk has 0 MB left, but a checkpoint takes {size / 1e6:.0f} MB" in told[0]
