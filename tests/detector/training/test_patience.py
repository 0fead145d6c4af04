"""train.patience: a run ends when AP has stopped rising, and goes on if that is wanted."""

from pathlib import Path

import pytest

from detector.config import TrainConfig
from detector.training.checkpoints import RunState, out_of_patience
from detector.training.trainer import Trainer
from tests.builders import small_coco
from tests.runs import last, read_metrics, tiny_config


@pytest.mark.parametrize(
    ("step", "evaluated", "best_step", "patience", "ends"),
    [
        (50, 50, 30, None, False),
        (50, 50, 30, 3, False),
        (50, 50, 30, 2, True),
        (50, 50, 30, 1, True),
        (50, 40, 30, 1, False),  # epochs between two evaluations
        (50, 50, 50, 1, False),
        (100, 100, 30, 2, False),  # at its last epoch a run ends anyway
    ],
)
def test_the_best_ap_may_be_so_many_epochs_old(
    step: int, evaluated: int, best_step: int, patience: int | None, ends: bool
) -> None:
    now = RunState(step=step, evaluated=evaluated, best=0.5, best_step=best_step)
    said = out_of_patience(now, TrainConfig(epochs=10, patience=patience), steps_per_epoch=10)
    assert bool(said) == ends
    now.best = 0  # nothing has been found so far
    assert out_of_patience(now, TrainConfig(epochs=10, patience=patience), steps_per_epoch=10) == ""
    if ends:
        assert "since epoch 3, so the run ends after epoch 5 of 10" in said


def test_a_run_ends_early_and_goes_on_where_it_is_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = small_coco(tmp_path / "set", 4), tmp_path / "run"
    # Nothing is learnt, nothing is averaged: each evaluation is as good as the first.
    still = (
        "train.seed=5",  # with this seed a little is found nevertheless
        "optimizer.name=sgd",
        "optimizer.lr=1e-30",
        "model.norm=group",
        "train.epochs=5",
        "train.log_every=1",
    )
    Trainer(tiny_config(root, run, *still, "train.patience=2"), "test").run()
    out = capsys.readouterr().out
    assert "AP has not risen since epoch 1, so the run ends after epoch 3 of 5" in out
    best = next(line["AP"] for line in read_metrics(run) if "AP" in line)
    assert out.splitlines()[-1] == f"best AP {best:.3f} after epoch 1: {run / 'checkpoints' / 'best.pt'}"
    evaluated = [line["epoch"] for line in read_metrics(run) if "AP" in line]
    assert evaluated == [1, 2, 3] and last(run)["step"] == 6

    text = (run / "config.yaml").read_text()
    more = tiny_config(root, run, *still, "train.patience=2", "train.epochs=9")
    Trainer(more, "test", resume=run).run()
    assert "ends after epoch 3 of 9" in capsys.readouterr().out
    assert (run / "config.yaml").read_text() == text  # no step is made
    assert last(run)["step"] == 6 and len(read_metrics(run)) == 9

    best = (run / "checkpoints" / "best.pt").read_bytes()
    other = tiny_config(root, run, *still, "train.patience=2", "eval.topk_candidates=500")
    Trainer(other, "test", resume=run).run()
    assert "nothing that affects the metrics, because the run has ended" in capsys.readouterr().out
    assert last(run)["step"] == 6 and (run / "checkpoints" / "best.pt").read_bytes() == best

    Trainer(tiny_config(root, run, *still, "train.patience=3"), "test", resume=run).run()
    assert "AP has not risen since epoch 1, so the run ends after epoch 4 of 5" in capsys.readouterr().out
    Trainer(tiny_config(root, run, *still), "test", resume=run).run()
    assert [line["epoch"] for line in read_metrics(run) if "AP" in line] == [1, 2, 3, 4, 5]
    out = capsys.readouterr().out
    assert "left 00:0" in out and out.index("left") > out.index("step")
