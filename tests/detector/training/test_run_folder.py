"""The run folder: what a run leaves behind, and that nothing in it is lost."""

import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from detector.checkpoint import save_checkpoint
from detector.config.file import parse_config
from detector.output import write_text
from detector.training.launch import Launch, launch_of, launched
from detector.training.run_folder import (
    append_metrics,
    changed_keys,
    forget_metrics_after,
    in_use,
    mark_launch,
    measures_otherwise,
    new_run_folder,
    resume_config,
    run_of_launch,
)
from detector.training.trainer import Trainer
from errors import InputError
from tests.builders import small_coco
from tests.runs import boxes_lost_at, listing, no_file_larger_than, read_metrics, tiny_config

COCO_NAMES = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}
CALIBRATION = {"calibration_error_raw", "calibration_error", "calibration_error_held_out"}
STEP_VALUES = {
    "loss",
    "loss_classification",
    "loss_box",
    "positives_per_image",
    "gradient_norm",
    "lr",
    "ranked_negatives",
    "images_per_s",
    "step_s",
    "data_wait",
    "memory_gib",
}
STEPS, EPOCHS = 3, 2  # 6 images in batches of 2
WORDS = (
    f"train.epochs={EPOCHS}",
    "train.log_every=1",
    "optimizer.lr_for_batch=4",
    "schedule.milestones=[1.5]",
    "schedule.gamma=0.5",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(small_coco(folder / "set"), folder / "run", *WORDS)
    with boxes_lost_at(STEPS * EPOCHS):
        Trainer(config, "demo").run()
    return folder / "run"


def test_the_configuration_of_a_run_reads_back_as_it_was(run: Path) -> None:
    written = parse_config(yaml.safe_load((run / "config.yaml").read_text()), "config.yaml")
    assert written == tiny_config(run.parent / "set", run, *WORDS)


def test_a_run_says_what_it_was_made_with(run: Path) -> None:
    first = (run / "config.yaml").read_text().splitlines()[0]
    assert first.startswith(f"# torch {metadata.version('torch')}, torchvision ")
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}." in first


def test_every_step_has_a_line_of_metrics(run: Path) -> None:
    lines = [line for line in read_metrics(run) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == pytest.approx([k / STEPS for k in range(1, 7)], abs=1e-4)
    # Half of 0.001, which is meant for twice the batch; two steps of warm-up; halved after 1.5 epochs.
    assert [line["lr"] for line in lines] == pytest.approx([k * 5e-4 for k in (1 / 3, 2 / 3, 1, 1, 1, 0.5)])
    for line in lines:
        assert set(line) == STEP_VALUES | {"step", "epoch"}
        assert line["loss"] == pytest.approx(line["loss_classification"] + line["loss_box"])
        assert line["gradient_norm"] > 0
        assert 0 < line["ranked_negatives"] <= 1
        assert 0.05 < line["memory_gib"] < 20


def test_every_evaluation_has_a_line_with_the_twelve_coco_names(run: Path) -> None:
    lines = [line for line in read_metrics(run) if "AP" in line]
    assert [(line["step"], line["epoch"]) for line in lines] == [(3, 1), (6, 2)]
    for line in lines:
        assert set(line) == COCO_NAMES | CALIBRATION | {"step", "epoch", "per_class", "errors"}
        assert {name: one["gt_boxes"] for name, one in line["per_class"].items()} == {"cat": 5, "dog": 5}


def test_best_holds_the_evaluation_with_the_highest_ap(run: Path) -> None:
    evaluations = [line for line in read_metrics(run) if "AP" in line]
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    first, last = evaluations
    assert first["AP"] > last["AP"] == 0
    assert best["step"] == best["evaluated"] == first["step"]
    assert best["metrics"] == {key: first[key] for key in best["metrics"]}


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_checkpoint_carries_weights_and_what_is_needed_to_use_them(run: Path, name: str) -> None:
    content = torch.load(run / "checkpoints" / name, weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in content["model"].values())
    assert (content["classes"], content["category_ids"]) == (["cat", "dog"], [3, 7])
    assert content["epoch"] == content["step"] / STEPS
    parse_config(content["config"], name)


def begun(wanted: str | None, name: str, config: str) -> Path:
    with new_run_folder(wanted, name, config) as folder:
        return folder


def test_runs_of_one_name_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [str(begun(None, name, "a: 1\n")) for name in ("bccd", "bccd", "other", "bccd")]
    assert made == ["runs/bccd", "runs/bccd-2", "runs/other", "runs/bccd-3"]


def launch(name: str, *agents: str, restarted: bool = False) -> Launch:
    return Launch(name, frozenset(agents), restarted)


def test_a_launch_whose_name_is_given_again_finds_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun --rdzv-id coco, twice: the second is the one that restarts, and its run is the newer one."""
    monkeypatch.chdir(tmp_path)
    again = launch("night", "agent 9", restarted=True)
    assert run_of_launch(None, "coco", again) is None
    for name, agent in (("night", "agent 1"), ("night", "agent 2"), ("day", "agent 3"), ("none", "agent 4")):
        mark_launch(begun(None, "coco", "a: 1\n"), launch(name, agent))
    os.utime("runs/coco/.launch", (1, 1))
    assert str(run_of_launch(None, "coco", again)) == "runs/coco-2"
    assert str(run_of_launch(None, "coco", launch("day", "agent 9", restarted=True))) == "runs/coco-3"
    assert run_of_launch("runs/coco-3", "coco", again) is None
    assert run_of_launch(None, "coco", launch("night", "agent 9")) is None  # a new launch begins a new run
    assert run_of_launch(None, "coco", launch("none", "agent 9", restarted=True)) is None
    shutil.rmtree("runs/coco")  # a gap in the numbers does not hide later runs
    assert str(run_of_launch(None, "coco", again)) == "runs/coco-2"


def test_a_launch_is_the_same_as_long_as_one_of_its_agents_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a machine joins or leaves, the others restart their processes and count no restart.

    The same agents without a restart are another launch: a script or a program may start several.
    """
    monkeypatch.chdir(tmp_path)
    mark_launch(begun(None, "coco", "a: 1\n"), launch("none", "agent 1", "agent 2"))
    assert str(run_of_launch(None, "coco", launch("none", "agent 2", "agent 3"))) == "runs/coco"
    assert run_of_launch(None, "coco", launch("none", "agent 3")) is None
    assert run_of_launch(None, "coco", launch("other", "agent 2", "agent 1")) is None
    again = launch("none", "agent 1", "agent 2", restarted=True)
    assert str(run_of_launch(None, "coco", again)) == "runs/coco"
    Path("runs/coco-2/.launch").mkdir(parents=True)  # cannot be read
    assert str(run_of_launch(None, "coco", again)) == "runs/coco"


def test_a_launch_is_what_its_processes_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launched() is None and launch_of([None, None]) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    mine = launched()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    other = launched()
    assert mine is not None and other is not None
    assert launch_of([mine]) == launch("night", *mine.agents)
    far = replace(other, agents=frozenset(["far"]))
    assert launch_of([mine, far]) == launch("night", *mine.agents, "far", restarted=True)


@pytest.mark.parametrize("content", ["", "- 1\n", "words\n", "a: [\n"])
def test_a_configuration_that_is_none_is_one_line(tmp_path: Path, content: str) -> None:
    """As a power failure before the first checkpoint may leave it."""
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(InputError, match=r"config\.yaml cannot be read, and there is no checkpoint"):
        resume_config(tmp_path)


def test_an_empty_folder_is_taken_and_a_used_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert begun(str(tmp_path / "empty"), "x", "a: 1\n") == tmp_path / "empty"
    used = tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"run\.dir: .*used is not empty"):
        begun(str(used), "x", "a: 1\n")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("left", ["checkpoints/best.pt", ".git/config"])
def test_a_folder_that_only_looks_bare_is_refused(tmp_path: Path, left: str) -> None:
    """Weights that are all that somebody has kept of a run; a repository without a commit."""
    used = tmp_path / "used"
    (used / left).parent.mkdir(parents=True)
    (used / left).write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(InputError, match=r"run\.dir: .*used is not empty"):
        begun(str(used), "x", "a: 1\n")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("error", [InputError("no space"), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("there", [False, True])
def test_of_a_run_folder_that_cannot_be_begun_nothing_is_left(
    tmp_path: Path, error: Exception, there: bool
) -> None:
    """The folders above it are not left either; one that existed stays, and can be used later."""

    def fail(*_: object, **__: object) -> None:
        raise error

    if there:
        (tmp_path / "more" / "run").mkdir(parents=True)
    before = listing(tmp_path)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=r"[Nn]o space"):
        patch.setattr("detector.training.run_folder.write_text", fail)
        begun(str(tmp_path / "more" / "run"), "x", "a: 1\n")
    assert listing(tmp_path) == before
    begun(str(tmp_path / "more" / "run"), "x", "a: 1\n")


def test_what_a_run_leaves_that_is_killed_before_its_first_line_is_written_is_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    for name in (".lock", ".config.yaml.77.tmp"):
        (folder / name).touch()
    assert begun(str(folder), "x", "a: 1\n") == folder
    assert (folder / "config.yaml").read_text() == "a: 1\n"
    with pytest.raises(InputError, match="is not empty"):
        begun(str(folder), "x", "a: 2\n")


def test_of_two_that_begin_in_one_folder_the_second_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        in_use(folder),
        pytest.raises(InputError, match="in use by another training"),
    ):  # the other began a moment ago
        begun(str(folder), "x", "b: 1\n")
    assert {path.name for path in folder.iterdir()} == {".lock"}
    with new_run_folder(str(folder), "x", "a: 1\n"):
        for _ in range(2):
            with pytest.raises(InputError, match="is not empty"):
                begun(str(folder), "x", "b: 1\n")
    assert (folder / "config.yaml").read_text() == "a: 1\n"


@pytest.mark.parametrize("broken", [False, True])
def test_a_temporary_file_that_cannot_be_removed_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """A disk that turns read-only refuses even to remove what is not there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    if not broken:
        write_text(tmp_path / "a.txt", "whole")
        save_checkpoint(tmp_path / "a.pt", {})
        assert (tmp_path / "a.txt").read_text() == "whole" and (tmp_path / "a.pt").is_file()
        return
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: Read-only"):
        write_text(tmp_path / "a.txt", "whole")
    with pytest.raises(InputError, match=r"cannot write .*a\.pt \(Read-only"):
        save_checkpoint(tmp_path / "a.pt", {})


def test_a_run_folder_on_a_disk_that_takes_no_lock_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(InputError, match=r"run cannot be written to \(Read-only"), in_use(tmp_path / "run"):
        pass


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old\n")
    with no_file_larger_than(1000), pytest.raises(InputError, match=r"cannot write .*config\.yaml: "):
        write_text(path, "new\n" * 1000)
    assert path.read_text() == "old\n"
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_half_a_character_does_not_hinder_a_text(tmp_path: Path) -> None:
    """JSON may contain one; names of files in other encodings stay as they are."""
    write_text(tmp_path / "a", "cat \ud83d\n")
    assert (tmp_path / "a").read_bytes() == b"cat \\ud83d\n"
    write_text(tmp_path / "a", os.fsdecode(b"\xe9.jpg"))
    assert (tmp_path / "a").read_bytes() == b"\xe9.jpg"
    assert listing(tmp_path).keys() == {"a"}


def test_metrics_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1, "AP": 0.5})
    append_metrics(tmp_path, {"step": 2, "AP": 1 / 3})
    assert read_metrics(tmp_path) == [{"step": 1, "AP": 0.5}, {"step": 2, "AP": 1 / 3}]
    with no_file_larger_than(0), pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: "):
        append_metrics(tmp_path, {"step": 3, "AP": 0.5})


def test_an_edited_record_of_the_configuration_is_not_taken_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    Trainer(tiny_config(small_coco(tmp_path / "set", 4), run, "train.epochs=1"), "test").run()
    caplog.clear()
    assert resume_config(run)["train"]["epochs"] == 1 and caplog.text == ""
    text = (run / "config.yaml").read_text()
    assert "epochs: 1," in text
    (run / "config.yaml").write_text(text.replace("epochs: 1,", "epochs: 3,"))
    assert resume_config(run)["train"]["epochs"] == 1
    assert "config.yaml is only a record and is not read" in caplog.text and "train.epochs=1" in caplog.text


@pytest.mark.parametrize(
    ("key", "before", "now", "otherwise"),
    [
        ("data.image_size", 320, 640, True),
        ("data.transforms", {"eval": ["a"], "train": []}, {"eval": ["b"], "train": []}, True),
        ("data.transforms", {"eval": ["a"], "train": []}, {"eval": ["a"], "train": ["b"]}, False),
        ("data.splits", {"val": "a", "train": "b"}, {"val": "c", "train": "b"}, True),
        ("data.splits", {"val": "a", "test": None}, {"val": "a", "test": "d"}, False),
        ("eval.nms", "hard", "soft", True),
        ("eval.batch_size", 1, 2, False),
        ("eval.tile_batch_size", 1, 2, False),
        ("eval.backend", "pycocotools", "faster_coco_eval", False),
        ("eval.calibrate", True, False, False),
        ("train.epochs", 1, 2, False),
    ],
)
def test_what_cannot_be_compared_with_before_is_known(
    key: str, before: object, now: object, otherwise: bool
) -> None:
    assert measures_otherwise(key, before, now) == otherwise


def test_what_two_configurations_do_not_share_is_no_change() -> None:
    """A line that was removed from config.yaml by hand, or a key of another version."""
    before = {"train": {"epochs": 1, "seed": 0, "old": 1}, "older": {"key": 1}, "eval": {"nms": "hard"}}
    now = {"train": {"epochs": 3, "seed": 0, "new": 1}, "newer": {"key": 1}, "eval": None}
    assert list(changed_keys(before, now)) == [("train.epochs", 1, 3)]


def test_metrics_are_json_where_a_number_is_not_finite(tmp_path: Path) -> None:
    append_metrics(tmp_path, {"step": 1, "loss": float("nan"), "gradient_norm": float("inf"), "lr": 0.1})
    line = (tmp_path / "metrics.jsonl").read_text()
    assert line == '{"step": 1, "loss": null, "gradient_norm": null, "lr": 0.1}\n'


def test_metrics_after_a_step_and_lines_cut_off_are_forgotten(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "loss": 0.1}) for step in (1, 2, 2, 3)]
    damaged = lines[0].encode().replace(b"loss", b"lo\xffs")[:-1]  # a bit that a power failure has flipped
    content = [*(line.encode() for line in lines), damaged, b"[2]", b'{"step": null}', b'{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(content))
    assert not forget_metrics_after(tmp_path, 2, evaluated=2)
    assert (tmp_path / "metrics.jsonl").read_text() == "\n".join(lines[:3]) + "\n"


def test_an_evaluation_that_was_logged_and_not_saved_is_forgotten(tmp_path: Path) -> None:
    """Killed between the two: the evaluation at step 4 will be repeated, earlier ones count."""
    lines = [
        json.dumps(r) for r in ({"step": 2, "AP": 0.1}, {"step": 4, "loss": 0.5}, {"step": 4, "AP": 0.2})
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert not forget_metrics_after(tmp_path, 4, evaluated=4)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines
    assert forget_metrics_after(tmp_path, 4, evaluated=2) == {"step": 4, "loss": 0.5}
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:2]
    (tmp_path / "metrics.jsonl").write_text("\n".join((lines[0], lines[2])) + "\n")
    assert forget_metrics_after(tmp_path, 4, evaluated=2) == {}  # nothing was logged of the step itself
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == lines[:1]


def test_a_folder_without_metrics_has_none_to_forget(tmp_path: Path) -> None:
    assert not forget_metrics_after(tmp_path, 2, evaluated=2)
    assert list(tmp_path.iterdir()) == []
