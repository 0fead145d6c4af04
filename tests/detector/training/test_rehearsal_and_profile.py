"""The dry run, the profile of a step, and compilation: what they say, and that they change nothing."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

import train as door
from data.feed import checked
from data.loader import DetectionDataset
from data.sample import Batch
from detector.builders.data import build_pipeline
from detector.builders.network import build_model
from detector.criterion import Losses
from detector.training.anchor_check import at_scale, measure_anchors
from detector.training.compilation import compilation_explained, compilation_report, compile_parts
from detector.training.gradients import Gradients
from detector.training.learner import Learner
from detector.training.profile import phase_table
from detector.training.rehearsal import _time_steps, rehearse
from detector.training.stop import StopRequest
from detector.training.trainer import Trainer
from errors import InputError, Stopped
from tests.builders import TINY_MODEL, coco_dict, small_coco, write_coco
from tests.oracles import iou
from tests.runs import assert_one_line, call, difference, last, listing, tiny_config


def test_a_dry_run_says_what_is_needed_and_writes_nothing(tmp_path: Path) -> None:
    small_coco(tmp_path / "set", 8)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}\ntrain: {epochs: 30, eval_every: 7}")
    before = listing(tmp_path)
    outcome = call(door.main, "tiny.yaml", *TINY_MODEL, "--dry-run", cwd=tmp_path)
    assert (outcome.code, outcome.err) == (0, "")
    assert listing(tmp_path) == before
    for claim in (
        r"8 training images with 14 boxes of 2 classes, 8 validation images",
        r"anchors   [\d.]+ % of 14 gt boxes",
        r"step      [\d.]+ s for 2 images",
        r"memory    [\d.]+ GiB, on cpu",
        r"120 steps and 5 evaluations: about \d+ min",
    ):
        assert re.search(claim, outcome.out), claim


def test_a_dry_run_refuses_what_the_run_would(tmp_path: Path) -> None:
    """A folder that cannot be created, and a learning rate at which no loss is finite."""
    small_coco(tmp_path / "set", 8)
    (tmp_path / "file").touch()
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}")
    for path in ("file", "file/run"):
        outcome = call(door.main, "tiny.yaml", *TINY_MODEL, f"run.dir={path}", "--dry-run", cwd=tmp_path)
        assert_one_line(outcome, f"run.dir: {path}", "not a folder")
    words = ("tiny.yaml", *TINY_MODEL, "optimizer.lr=1e30", "--dry-run")
    assert_one_line(call(door.main, *words, cwd=tmp_path), "the loss is not finite at step", "optimizer.lr")


def test_a_dry_run_goes_on_where_the_run_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With train.on_nonfinite=skip a step that is not finite is skipped."""
    update, made = Learner.update, []

    def update_but_one(learner: Learner, losses: Losses) -> Any:
        made.append(1)
        return (update(learner, losses)[0], torch.tensor(len(made) == 2))

    monkeypatch.setattr(Learner, "update", update_but_one)
    config = tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", "train.on_nonfinite=skip")
    assert "no run folder was written" in list(rehearse(config))[-1]
    assert re.search(r"not finite in 1 of the first \d steps", caplog.text)


def test_a_dry_run_of_no_epochs_and_of_a_cosine(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set", 8)
    words = ("train.epochs=0", "schedule.name=cosine", "schedule.warmup_steps=0")
    assert "0 steps and 1 evaluation" in list(rehearse(tiny_config(root, tmp_path / "run", *words)))[-1]


def test_a_dry_run_counts_steps_and_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 steps of 6 s; evaluations of 4 batches of a minute, after every seven epochs and at the end."""
    monkeypatch.setattr("detector.training.rehearsal._time_steps", lambda trainer: (6.0, 1.0))
    monkeypatch.setattr("detector.training.validation.Validation.time_batch", lambda *_: (60.0, 4))
    words = ("train.epochs=30", "train.eval_every=7")
    root = small_coco(tmp_path / "set", 8)
    said = list(rehearse(tiny_config(root, tmp_path / "run", *words)))
    assert said[-1] == "run       120 steps and 5 evaluations: about 32 min; no run folder was written"
    # Half of the steps have a quarter of the pixels, but 5 s of data as before: 60 x 5.25 s and 60 x 6 s.
    monkeypatch.setattr("detector.training.rehearsal._time_steps", lambda trainer: (6.0, 5.0))
    said = list(rehearse(tiny_config(root, tmp_path / "run", *words, "schedule.image_scales=[0.5,1]")))
    assert said[-1] == "run       120 steps and 5 evaluations: about 31 min; no run folder was written"


def test_a_dry_run_of_a_run_to_be_continued_counts_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of 30 epochs are done: 112 steps of 6 s and five evaluations of four minutes are left."""
    config = tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", "train.epochs=2")
    Trainer(config, "test").run()
    before = listing(tmp_path)
    monkeypatch.setattr("detector.training.rehearsal._time_steps", lambda trainer: (6.0, 1.0))
    monkeypatch.setattr("detector.training.validation.Validation.time_batch", lambda *_: (60.0, 4))
    words = ("train.epochs=30", "train.eval_every=7")
    outcome = call(door.main, "--resume", "run", *words, "--dry-run", cwd=tmp_path)
    assert "112 steps and 5 evaluations: about 31 min" in outcome.out, outcome.err
    outcome = call(door.main, "--resume", "run", "--dry-run", cwd=tmp_path)
    assert "0 steps and 0 evaluations: about 0 min" in outcome.out, outcome.err
    assert listing(tmp_path) == before


def test_the_steps_of_a_dry_run_are_timed_when_what_was_loaded_ahead_is_used_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two loading processes have two batches each when the first step is done; all others take a second."""
    trainer = Trainer(tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run"), "test")
    now = [0.0]

    def batches(loader: Any) -> Iterator[Batch]:
        for number in range(100):
            now[0] += 1.0 if number > 4 else 0.0
            yield batch

    (batch, *_) = checked(trainer.parts.loader)
    trainer.parts.loader.num_workers, trainer.parts.loader.prefetch_factor = 2, 2
    monkeypatch.setattr("detector.training.rehearsal.checked", batches)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert _time_steps(trainer) == (1.0, 1.0)


def test_a_dry_run_of_a_run_folder_that_is_taken_is_one_line(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"run\.dir: .*run is not empty"):
        list(rehearse(tiny_config(root, tmp_path / "run")))


def test_a_dry_run_of_bad_data_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: nowhere}")
    assert_one_line(call(door.main, "tiny.yaml", *TINY_MODEL, "--dry-run", cwd=tmp_path), "nowhere")


def test_recall_is_the_best_iou_of_each_box_with_an_anchor(tmp_path: Path) -> None:
    """Oracle: IoU by a double loop with the anchors that the network itself gives; the crowd has none."""
    content = coco_dict(
        [[[8.0, 8.0, 32.0, 32.0], [2.0, 3.0, 4.0, 5.0]], [[10.0, 1.0, 50.0, 11.0], [0.0, 0.0, 3.0, 40.0]]]
    )
    content["annotations"][3]["iscrowd"] = 1
    root = write_coco(tmp_path / "set", content, content)
    config = tiny_config(root, tmp_path / "run", "data.transforms.train=[]")
    parts = Trainer(config, "test").parts
    model = parts.learner.model
    found = measure_anchors(parts.train_set, config).best
    anchors = model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[48, 64]])).anchors
    dataset = DetectionDataset(parts.train_set, build_pipeline(config.data, True), 0)
    samples = [dataset.sample(0, row) for row in range(2)]
    boxes = [box for sample in samples for box in sample.boxes[~sample.ignore].tolist()]
    assert len(boxes) == 3
    expected = [max(iou(box, anchor) for anchor in anchors.tolist()) for box in boxes]
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), abs=1e-6)
    assert max(expected) > 0.9 and min(expected) < 0.1


@pytest.mark.parametrize("scale", [0.5, 0.75])
def test_anchors_are_measured_at_the_smallest_size_too(tmp_path: Path, scale: float) -> None:
    """Oracle: the anchors of images that are resized to that size."""
    boxes = [[8.0, 8.0, 64.0, 64.0], [20.0, 30.0, 40.0, 50.0], [100.0, 10.0, 50.0, 111.0]]
    content = coco_dict([boxes])
    content["images"][0].update(height=128, width=256)
    config = tiny_config(write_coco(tmp_path / "set", content, content), tmp_path / "run")
    resized = {"ResizeWithin": {"long": round(256 * scale)}}
    fits = []
    for transforms in ([], [resized]):
        data = config.data.model_copy(
            update={"transforms": config.data.transforms.model_copy(update={"train": transforms})}
        )
        of_size = config.model_copy(update={"data": data})
        fits.append(measure_anchors(Trainer(of_size, "test").parts.train_set, of_size))
    assert at_scale(fits[0], scale).tolist() == pytest.approx(fits[1].best.tolist(), abs=1e-5)
    assert at_scale(fits[0], scale).tolist() != pytest.approx(fits[0].best.tolist(), abs=1e-2)


def test_a_profile_names_the_phases_and_leaves_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        small_coco(tmp_path / "set", 24), tmp_path / "run", "train.epochs=1", "train.profile=true"
    )
    Trainer(config, "test").run()
    said = capsys.readouterr().out
    shares = [float(share) for share in re.findall(r"^\w+ +[\d.]+ +([\d.]+) %", said, re.MULTILINE)]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=0.5)
    for name in ("data", "agree", "forward", "loss", "backward", "update", "logging"):
        assert re.search(rf"^{name} ", said, re.MULTILINE)
    assert len(list((tmp_path / "run").glob("*.pt.trace.json"))) == 1


def test_a_profile_on_a_gpu_tells_waiting_from_work() -> None:
    """Measured on an H100, in microseconds of six steps: each phase twice, and the kernels."""

    def event(key: str, cpu: float, gpu: float, kernels: float, on: str, annotation: bool) -> Any:
        where = getattr(DeviceType, on)
        return SimpleNamespace(
            key=key,
            count=6,
            cpu_time_total=cpu,
            device_time_total=gpu,
            self_device_time_total=kernels,
            device_type=where,
            is_user_annotation=annotation,
        )

    phases = {"data": (2e3, 0, 0), "forward": (252e3, 72e3, 246e3), "backward": (342e3, 0, 600)}
    events = [
        event("kernel", 0, 180e3, 180e3, "CUDA", False),
        event("aten::add", 1e3, 9e3, 9e3, "CPU", False),
    ]
    for name, (cpu, gpu, span) in phases.items():
        events += [event(name, cpu, gpu, 0, "CPU", True), event(name, 0, span, span, "CUDA", True)]
    table = [line.split() for line in phase_table(events, cuda=True).splitlines()[1:]]
    assert table == [
        ["data", "0.3", "0.3", "%", "0.0"],
        ["forward", "42.0", "42.3", "%", "12.0"],
        ["backward", "57.0", "57.4", "%", "18.0"],
    ]


@pytest.mark.parametrize(
    ("checkpointed", "norm"), [("false", "batch"), ("true", "batch"), ("false", "frozen")]
)
def test_a_compiled_network_trains_as_the_plain_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpointed: str,
    norm: str,
) -> None:
    """With the backend that runs the captured graphs as they are: the same operations, the same bits."""
    monkeypatch.setattr(
        "detector.training.assembly.compile_parts", lambda model: compile_parts(model, backend="eager")
    )
    root = small_coco(tmp_path / "set", 8)
    for name, on in (("plain", "false"), ("compiled", "true")):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        words = f"train.compile={on}", f"train.checkpoint_activations={checkpointed}", f"model.norm={norm}"
        config = tiny_config(root, tmp_path / name, "train.epochs=1", "train.ema_decay=0.9", *words)
        Trainer(config, "test").run()
    assert difference(last(tmp_path / "plain")["training"], last(tmp_path / "compiled")["training"]) is None
    assert re.search(
        r"train\.compile: [1-9]\d* graphs compiled for 1 image shapes, 0 graph breaks",
        capsys.readouterr().out,
    )


def test_what_is_not_compiled_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.utils.counters.clear()
    assert "nothing was compiled" in compilation_report(1)
    with pytest.raises(InputError, match=r"train\.compile=false"), compilation_explained():
        raise torch._dynamo.exc.TorchDynamoException("\nno compiler\nmore")
    stop = StopRequest(speak=False)
    stop.signal = "SIGINT"  # Ctrl-C, which the compiler's processes get as well
    with (
        pytest.raises(Stopped, match=r"SIGINT while .* compiled; go on$"),
        compilation_explained(stop, "go on"),
    ):
        raise torch._dynamo.exc.TorchDynamoException("a compiler's process ended")
    assert stop.served  # a second signal changes nothing
    with (  # other processes, which may be waiting for this one, are told of a failure
        pytest.raises(InputError, match=r"SIGINT while .* compiled; go on$"),
        compilation_explained(stop, "go on", alone=False),
    ):
        raise torch._dynamo.exc.TorchDynamoException("a compiler's process ended")


@pytest.mark.parametrize("most", [1, 64])
def test_what_dynamo_refuses_to_compile_is_counted(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """The two heads share their code and so its limit: a single graph is not enough."""
    monkeypatch.setattr("detector.training.compilation._MOST_GRAPHS", most)
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(torch._dynamo.config, name):
            monkeypatch.setattr(torch._dynamo.config, name, 8)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = build_model(tiny_config(Path(), Path()).model, 2, pretrained=False).eval()
    compile_parts(model, backend="eager")
    with torch.no_grad():
        for height in (64, 96, 128):
            model(torch.zeros(1, 3, height, 64, dtype=torch.uint8), torch.tensor([[height, 64]]))
    assert ("parts of the network run uncompiled" in compilation_report(3)) == (most == 1)


def test_a_dry_run_that_cannot_compile_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(Gradients, "__call__", refuse)
    small_coco(tmp_path / "set", 8)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}")
    outcome = call(door.main, "tiny.yaml", *TINY_MODEL, "--dry-run", cwd=tmp_path)
    assert_one_line(outcome, "train.compile=false")


@pytest.mark.parametrize(
    ("norm", "stages", "said"), [("frozen", 0, True), ("group", 2, True), ("batch", 0, False)]
)
def test_what_is_frozen_at_random_weights_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, norm: str, stages: int, said: bool
) -> None:
    words = f"model.norm={norm}", f"model.frozen_stages={stages}"
    Trainer(tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", *words), "test")
    assert ("without pretrained weights" in caplog.text) == said


@pytest.mark.parametrize(("images", "said"), [(16, "profile of 4 steps"), (8, "ended before the steps to")])
def test_a_profile_of_a_short_run_says_how_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: int, said: str
) -> None:
    """Two steps are skipped and two more are for warming up; six would be profiled."""
    words = ("train.epochs=1", "train.profile=true")
    Trainer(tiny_config(small_coco(tmp_path / "set", images), tmp_path / "run", *words), "test").run()
    assert said in capsys.readouterr().out
