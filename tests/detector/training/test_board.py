"""TensorBoard: what its own reader reads back from the event file of a run."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from detector.training.board import Board, hyperparameters
from detector.training.monitor import Monitor
from detector.training.trainer import Trainer
from tests.builders import small_coco
from tests.runs import boxes_lost_at, read_metrics, tiny_config

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
WORDS = ("train.epochs=2", "train.log_every=1", "optimizer.lr=0.004", "train.seed=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of three steps; at the end no box is found."""
    folder = tmp_path_factory.mktemp("shown")
    with boxes_lost_at(6):
        Trainer(tiny_config(small_coco(folder / "set"), folder / "run", *WORDS), "demo").run()
    return folder / "run"


def events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def shown(line: dict[str, Any]) -> dict[str, float]:
    """The tags that the numbers of a line of metrics.jsonl should have."""
    if "loss" in line:
        tags = {"total": "loss", "classification": "loss_classification", "box": "loss_box"}
        values = {f"loss/{tag}": line[name] for tag, name in tags.items()}
        for name in ("lr", "gradient_norm", "positives_per_image", "ranked_negatives"):
            values[f"train/{name}"] = line[name]
        for name in ("images_per_s", "step_s", "data_wait", "memory_gib"):
            values[f"speed/{name}"] = line[name]
        return values
    values = {f"val/{name}": line[name] for name in ("AP", "AP50", "AP75")}
    values |= {f"val_size/{name}": line[name] for name in ("APs", "APm", "APl", "ARs", "ARm", "ARl")}
    values |= {f"val_recall/{name}": line[name] for name in ("AR1", "AR10", "AR100")}
    values |= {f"val_class_AP/{name}": one["AP"] for name, one in line["per_class"].items()}
    values |= {f"val_errors/{name}": line["errors"][name]["AP50"] for name in ERRORS}
    for name in ("", "_raw", "_held_out"):
        values[f"val_calibration/error{name}"] = line[f"calibration_error{name}"]
    return {tag: value for tag, value in values.items() if value >= 0}


def assert_scalars_are_those_of_metrics(run: Path) -> None:
    """Oracle: metrics.jsonl, written independently of the events, which hold float32. -1 is left out."""
    expected: dict[str, dict[int, float]] = {}
    for line in read_metrics(run):
        for tag, value in shown(line).items():
            expected.setdefault(tag, {})[line["step"]] = value
    board = events(run)
    assert set(board.Tags()["scalars"]) == set(expected)
    assert "val_size/APl" not in expected  # no large boxes in this set
    for tag, values in expected.items():
        found = board.Scalars(tag)
        assert [event.step for event in found] == list(values), tag
        assert [event.value for event in found] == pytest.approx(list(values.values())), tag


def test_the_scalars_are_those_of_metrics_jsonl_and_there_are_no_others(run: Path) -> None:
    assert_scalars_are_those_of_metrics(run)


def test_a_step_whose_evaluation_is_made_again_keeps_its_loss(tmp_path: Path) -> None:
    """Killed after the evaluation was logged and before it was saved."""
    config = tiny_config(small_coco(tmp_path / "set"), tmp_path / "run", *WORDS)
    save = Trainer._save

    def fail_once_evaluated(trainer: Trainer) -> None:
        if trainer.progress.evaluated == 3:
            raise RuntimeError("killed")
        save(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "_save", fail_once_evaluated)
        Trainer(config, "demo").run()
    time.sleep(1.1)  # files are read in the order of their names, which contain the second
    Trainer(config, "demo", resume=tmp_path / "run").run()
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2, 3, 3, 4, 5, 6, 6]
    assert_scalars_are_those_of_metrics(tmp_path / "run")


def test_half_a_character_in_a_class_name_is_shown_as_a_question_mark(tmp_path: Path, run: Path) -> None:
    """JSON may contain one, and TensorBoard does not accept it."""
    from detector.training.board import Board

    board = Board(tmp_path, None)
    board._scalars({"val_class_AP/cat \ud83d": 0.5}, 1)
    board.close()
    assert [event.value for event in events(tmp_path).Scalars("val_class_AP/cat ?")] == [0.5]


def test_pr_curves_count_gt_boxes_that_were_not_found(run: Path) -> None:
    """Rows: true and false positives, true and false negatives, precision, recall; from all down to none."""
    board = events(run)
    last, before = {}, {}
    for name in ("cat", "dog"):
        first, second = board.Tensors(f"val_PR/{name}")
        assert (first.step, second.step) == (3, 6)
        for at, event in ((before, first), (last, second)):
            at[name] = np.array(event.tensor_proto.float_val).reshape(6, 101)
    for right, wrong, _, unfound, precision, recall in before.values():
        assert right[0] > 0 and wrong[0] > 0
        assert (right + unfound == 5).all()  # gt boxes of either class
        np.testing.assert_allclose(precision, right / np.maximum(right + wrong, 1), rtol=1e-6)
        np.testing.assert_allclose(recall, right / 5, rtol=1e-6)
        assert (np.diff(right) <= 0).all() and (np.diff(wrong) <= 0).all()
    for right, _, _, unfound, _, _ in last.values():
        assert (right == 0).all() and (unfound == 5).all()


def test_the_same_pictures_are_shown_at_every_evaluation(run: Path) -> None:
    """Each shows gt and detections side by side: images of 64 x 48 px, enlarged eight times."""
    board = events(run)
    assert board.Tags()["images"] == [f"val_images/{i}_{i}" for i in range(4)]
    first, second = board.Images("val_images/0_0")
    assert (first.step, second.step) == (3, 6)
    pictures = [np.array(Image.open(io.BytesIO(e.encoded_image_string))).astype(int) for e in (first, second)]
    height, width = pictures[0].shape[:2]
    assert (first.height, first.width) == (height, width)
    assert height >= 8 * 48 and width >= 2 * 8 * 64
    changed = np.abs(pictures[0] - pictures[1]).max(axis=(0, 2)) > 64
    assert not changed[: width // 2].any()  # the gt boxes stay the same


def of_hparams(board: EventAccumulator, part: str) -> HParamsPluginData:
    return HParamsPluginData.FromString(board.SummaryMetadata(f"_hparams_/{part}").plugin_data.content)


def test_a_run_is_one_line_of_the_hparams_tab(run: Path) -> None:
    """Its settings and the names of its metrics are in its own event file, not in a subfolder."""
    assert [p.parent for p in run.rglob("events.*")] == [run]
    board = events(run)
    settings = of_hparams(board, "session_start_info").session_start_info.hparams
    assert settings["optimizer.lr"].number_value == pytest.approx(0.004)
    assert settings["loss.name"].string_value == "ap"
    assert settings["loss.delta"].number_value == 1
    experiment = of_hparams(board, "experiment").experiment
    assert {info.name for info in experiment.hparam_infos} == set(settings)
    named = {metric.name.tag for metric in experiment.metric_infos}
    assert named == {"val/AP", "val/AP50", "val/AP75"} <= set(board.Tags()["scalars"])
    assert of_hparams(board, "session_end_info").session_end_info.status == 1  # success


def test_the_configuration_is_shown_as_text(run: Path) -> None:
    (text,) = events(run).Tensors("config/text_summary")
    _, _, written = (run / "config.yaml").read_text().partition("\n")  # after the line of versions
    assert text.tensor_proto.string_val[0].decode().split() == written.split()


@pytest.mark.parametrize("killed", [2, 4])
def test_a_resumed_run_continues_its_curves_without_doubling(tmp_path: Path, killed: int) -> None:
    """Killed after step 4 was logged, it is continued from step 3; after step 2, from the start."""
    root, run = small_coco(tmp_path / "set"), tmp_path / "run"
    config = tiny_config(root, run, *WORDS)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        advance = Monitor.advance

        def interrupted(monitor: Monitor) -> None:
            advance(monitor)
            if read_metrics(run)[-1]["step"] == killed:
                raise KeyboardInterrupt

        patch.setattr(Monitor, "advance", interrupted)
        Trainer(config, "demo").run()
    assert [event.step for event in events(run).Scalars("loss/total")] == [*range(1, killed + 1)]
    Trainer(config, "demo", resume=run).run()
    board = events(run)
    assert [event.step for event in board.Scalars("loss/total")] == [1, 2, 3, 4, 5, 6]
    for tag in ("val/AP", "val_errors/missed"):
        assert [event.step for event in board.Scalars(tag)] == [3, 6]
    assert [event.step for event in board.Tensors("val_PR/cat")] == [3, 6]
    assert [event.step for event in board.Images("val_images/0_0")] == [3, 6]


def test_nothing_is_measured_on_steps_that_are_not_logged(tmp_path: Path) -> None:
    """Measuring the ranked share waits for the device: of three steps only the second and the last do so."""
    asked = []
    root = small_coco(tmp_path / "set")
    trainer = Trainer(tiny_config(root, tmp_path / "run", "train.epochs=1", "train.log_every=2"), "demo")
    measure = trainer.gradients.criterion.ranked_share
    assert measure is not None

    def noted(logits: Any, targets: Any) -> Any:
        asked.append(trainer.progress.step + 1)
        return measure(logits, targets)

    trainer.gradients.criterion.ranked_share = noted
    trainer.run()
    assert asked == [2, 3]


def test_an_evaluation_that_is_made_again_replaces_the_one_before(tmp_path: Path) -> None:
    for purge_step in (None, 4):
        board = Board(tmp_path, purge_step)
        board.step(4, {"loss": 0.5 if purge_step else 1.0})
        board.close()
        time.sleep(1.1)  # files are read in the order of their names, which contain the second
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("loss/total")] == [(4, 0.5)]


def test_a_folder_whose_name_is_not_utf8_is_shown_with_a_question_mark(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "caf\udce9", tmp_path)
    assert hyperparameters(config, 0.1)["data.root"] == str(tmp_path / "caf?")
