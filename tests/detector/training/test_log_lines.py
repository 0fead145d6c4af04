"""The log lines of training steps: which steps have one, and how much time it says is left."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from detector.training.monitor import Monitor
from detector.training.run_log import LOG, RunLog
from detector.training.trainer import Trainer
from tests.builders import small_coco
from tests.runs import read_metrics, tiny_config


def test_the_last_step_has_a_line_whatever_the_steps_between_lines(tmp_path: Path) -> None:
    words = ("train.epochs=2", "train.eval_every=2", "train.log_every=3")
    Trainer(tiny_config(small_coco(tmp_path / "set", 8), tmp_path / "run", *words), "test").run()
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [3, 6, 8]


@pytest.mark.parametrize(("first", "left"), [(0, "00:30"), (5, "01:00"), (8, "02:30")])
def test_the_time_that_is_left_goes_by_the_steps_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, left: str
) -> None:
    """10 of 25 steps are done after 20 seconds; steps made before a resumption took none of that time."""
    clock = SimpleNamespace(now=100.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("detector.training.monitor.time", clock)
    log = RunLog()
    log.begin(tmp_path)
    monitor = Monitor(tmp_path, 25, first, None, log)
    clock.now += 20
    monitor.step(10, 1.25, {"loss": 0.5})
    monitor.close()
    assert (tmp_path / LOG).read_text().endswith(f"  left {left}\n")
