"""log.txt of a run: what was said, and when, however the run went."""

import logging
import re
from datetime import datetime
from pathlib import Path

import pytest

import train as door
from detector.training.run_log import LOG, RunLog
from detector.training.trainer import Trainer
from errors import Bystander, InputError, Stopped
from tests.builders import TINY_MODEL, small_coco
from tests.runs import assert_refused, call, signal_at_step, tiny_config

_TIME = r"^(\d{4}-\d\d-\d\d \d\S+)  "


def entries(run: Path) -> list[str]:
    """The texts after the times, which never go back; a table is one entry."""
    text = (run / LOG).read_text()
    times = [datetime.fromisoformat(stamp) for stamp in re.findall(_TIME, text, re.M)]
    assert times and times == sorted(times) and all(time.tzinfo for time in times)
    return [entry.strip() for entry in re.split(_TIME, text, flags=re.M)[2::2]]


def test_all_that_was_said_is_kept_also_what_was_said_before_there_was_a_run(tmp_path: Path) -> None:
    """The warning of a setting comes before the data are read."""
    root = small_coco(tmp_path / "set", 8)
    words = (
        "data.format=coco",
        f"data.root={root}",
        *TINY_MODEL,
        "train.log_every=2",
        "train.epochs=2",
        "schedule.image_scales=[1]",
    )
    run = tmp_path / "run"
    outcome = call(
        door.main, *words, "schedule.gamma=0.5", "train.eval_every=1", f"run.dir={run}", cwd=tmp_path
    )
    assert outcome.code == 0, outcome.err
    said = entries(run)
    assert said[0] == "warning: schedule.gamma has no effect with schedule.name=cosine"
    assert said[1].startswith(f"{run}: 8 training images")
    steps = [entry for entry in said if "step" in entry and "loss" in entry and "left" in entry]
    assert [entry.split("step")[1].split()[0] for entry in steps] == ["2/8", "4/8", "6/8", "8/8"]
    for entry in said[1:]:  # without a terminal the same lines are printed, all to stdout
        assert entry in outcome.out
    assert sum("AP50" in entry for entry in said) == 2


def test_the_log_says_how_a_run_ended_and_goes_on_with_it(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    config = tiny_config(root, run, "train.epochs=2")
    before = logging.getLogger().handlers[:]

    def train(resume: Path | None = None) -> None:
        with RunLog() as log:
            Trainer(config, "test", resume, log=log).run()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        signal_at_step(patch, 3)
        train()
    assert entries(run)[-2] == "SIGTERM: saving the state after this step; a second signal ends at once"
    assert entries(run)[-1] == f"stopped by SIGTERM at step 3 of 8; saved: continue with --resume {run}"
    image = root / "images" / "2.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])  # its size can still be read
    with pytest.raises(InputError):
        train(run)
    assert re.match(r"error: image .*2\.png cannot be read", entries(run)[-1])
    image.write_bytes(whole)
    with (run / LOG).open("a") as file:
        file.write("half a li")  # as a full disk leaves it
    train(run)
    assert any(entry.startswith(f"{run}: ") and "8 steps from 3" in entry for entry in entries(run))
    assert "AP50" in entries(run)[-2] and entries(run)[-1].startswith("best AP ")
    assert logging.getLogger().handlers == before


def test_a_log_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    config = tiny_config(root, run, "train.epochs=1")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        signal_at_step(patch, 1)
        Trainer(config, "test").run()
    (run / LOG).unlink()
    (run / LOG).mkdir()
    assert Trainer(config, "test", resume=run).run()["AP"] >= -1


def test_a_refused_resumption_leaves_the_log_alone(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    Trainer(tiny_config(root, run, "train.epochs=1"), "test").run()
    assert_refused(door.main, ("--resume", str(run), "model.norm=group"), tmp_path, "cannot be changed")


def test_of_several_processes_each_says_what_it_says_on_the_terminal(tmp_path: Path) -> None:
    """One has an image that cannot be read; the main one only learns that another has failed."""
    main, other = RunLog(), RunLog()
    with pytest.raises(Bystander), main:
        logging.getLogger("main").warning("early")
        main.begin(tmp_path)
        with pytest.raises(InputError), other:
            other.begin(tmp_path, speaks=False)
            logging.getLogger().removeHandler(main)  # it is in another process
            logging.getLogger("other").warning("an image is skipped")
            raise InputError("image 2.png cannot be read")
        raise Bystander
    with pytest.raises(Bystander), other:
        raise Bystander
    assert entries(tmp_path) == [
        "warning: early",
        "warning: an image is skipped",
        "error: image 2.png cannot be read",
        "ended because another process has failed",
    ]


def test_a_name_in_no_encoding_costs_no_line(tmp_path: Path) -> None:
    """A file system accepts any bytes as a name, but a log is text."""
    log = RunLog()
    log.begin(tmp_path)
    log.write("image caf\udce9.png is skipped")
    assert entries(tmp_path) == ["image caf?.png is skipped"]


def test_an_error_that_nobody_has_foreseen_is_told_with_its_type(tmp_path: Path) -> None:
    """The type says more than the text if that is only a key."""
    with pytest.raises(KeyError), RunLog() as log:
        log.begin(tmp_path)
        raise KeyError("x")
    assert entries(tmp_path) == ["error: KeyError: 'x'"]
