"""Steps that are not finite: nothing of them reaches weights, statistics or the average."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.builders.data import build_set
from detector.checkpoint import load_checkpoint
from detector.criterion import Criterion, Losses, Matched
from detector.losses.batch_ranking import NonFiniteLogits
from detector.memory import memory_explained
from detector.objectives import Positives
from detector.training.checkpoints import Checkpoints
from detector.training.gradients import _checked
from detector.training.learner import Learner
from detector.training.nonfinite import NonFiniteStep, NonFiniteWatch, RunningStatistics, not_finite
from detector.training.trainer import Trainer
from errors import InputError, Stopped
from tests.builders import small_coco
from tests.runs import difference, read_metrics, tiny_config

WORDS = ("train.epochs=2", "train.log_every=1", "train.ema_decay=0.9", "optimizer.name=adamw")


def spoil_steps(patch: pytest.MonkeyPatch, steps: set[int], value: float) -> None:
    """The box loss of some steps, counted from 1, is `value`; NaN also reaches batch norm's statistics."""
    call, update = Criterion.__call__, Learner.update
    done: list[int] = []

    def spoiled(criterion: Criterion, *batch: Any) -> Losses:
        losses = call(criterion, *batch)
        if len(done) + 1 in steps:
            return Losses({**losses.parts, "box": losses.parts["box"] * 0 + value}, losses.positives)
        return losses

    def counted(learner: Learner, losses: Losses) -> Any:
        if len(done) + 1 in steps:
            for module in learner.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.fill_(torch.nan)
        done.append(1)
        return update(learner, losses)

    patch.setattr(Criterion, "__call__", spoiled)
    patch.setattr(Learner, "update", counted)


def states(learner: Learner) -> dict[str, Any]:
    """Everything that a step may change, copied."""
    moments = [
        value.clone() if isinstance(value, Tensor) else value
        for state in learner.optimizer.state_dict()["state"].values()
        for value in state.values()
    ]
    model = {key: value.clone() for key, value in learner.model.state_dict().items()}
    return {"model": model, "moments": moments}


def states_before_steps(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Filled as training goes on: element k is the state before step k + 1."""
    seen: list[dict[str, Any]] = []
    begin = Learner.begin

    def look_and_begin(learner: Learner, lr: float) -> None:
        seen.append(states(learner))
        begin(learner, lr)

    patch.setattr(Learner, "begin", look_and_begin)
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, value: float, optimizer: str) -> None:
    root = small_coco(tmp_path / "set", 8)
    words = (*WORDS, "train.on_nonfinite=skip", f"optimizer.name={optimizer}", "optimizer.clip_norm=1")
    trainer = Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {3, 4}, value)
        seen = states_before_steps(patch)
        trainer.run()
    assert difference(seen[2], seen[3]) is None
    assert difference(seen[2], seen[4]) is None
    assert difference(seen[1], seen[2]) is not None
    assert difference(seen[4], seen[5]) is not None
    average = trainer.learner.average
    assert average is not None
    assert all(torch.isfinite(t).all() for t in average.model.state_dict().values())
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert [line["steps_not_finite"] for line in lines] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert trainer.progress.step == 8


@pytest.mark.parametrize(("scale", "noticed"), [(65536.0, False), (0.5, True)])
def test_a_gradient_that_no_scale_makes_finite_is_noticed_in_fp16(scale: float, noticed: bool) -> None:
    """fp16 skips a step now and then; when its scale cannot fall any further, the fault lies elsewhere."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    learner = Learner(model, optimizer, torch.amp.GradScaler("cpu", init_scale=scale), None, 0.0)  # type: ignore[arg-type]
    before = model.weight.detach().clone()
    loss = model(torch.ones(1, 2)).sum()
    learner.scaler.scale(loss).backward()
    model.weight.grad.fill_(torch.nan)
    _, fault = learner.update(Losses({"box": loss.detach()}, torch.tensor(1)))
    assert bool(fault) == noticed
    assert torch.equal(model.weight, before)


def test_too_many_of_them_stop(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set", 16)
    words = (*WORDS, "train.on_nonfinite=skip", "train.max_nonfinite=2", "train.epochs=1")
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {2, 4, 5}, float("nan"))
        with pytest.raises(InputError, match=r"not finite at step 5 \(box nan; images \d+\.png"):
            Trainer(tiny_config(root, tmp_path / "run", *words), "test").run()


def test_so_many_is_counted_over_resumptions(tmp_path: Path) -> None:
    """Otherwise a run that is killed and continued would never reach its limit."""
    root, run = small_coco(tmp_path / "set", 16), tmp_path / "run"
    config = tiny_config(root, run, *WORDS, "train.on_nonfinite=skip", "train.max_nonfinite=2")
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {2, 4}, float("nan"))
        update, done = Learner.update, []

        def update_and_stop(learner: Learner, losses: Losses) -> Any:
            done.append(1)
            if len(done) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return update(learner, losses)

        patch.setattr(Learner, "update", update_and_stop)
        with pytest.raises(Stopped, match="at step 5"):
            Trainer(config, "test").run()
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {2}, float("nan"))
        with pytest.raises(InputError, match=r"not finite at step 7.*more than train\.max_nonfinite=2"):
            Trainer(config, "test", resume=run).run()


def test_rollback_takes_the_weights_of_the_last_checkpoint_and_goes_on(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set", 8)
    words = (*WORDS, "train.on_nonfinite=rollback", "train.eval_every=2")
    config = tiny_config(root, tmp_path / "run", *words)
    trainer = Trainer(config, "test")
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {7}, float("nan"))
        seen = states_before_steps(patch)
        trainer.run()
    # The checkpoint is that of the first epoch's end, four steps; seen[k] is the state before step k + 1.
    assert difference(seen[7], seen[4]) is None
    assert difference(seen[7], seen[6]) is not None
    assert trainer.progress.step == 8
    assert Trainer(config, "test", resume=tmp_path / "run").watch.count == 1  # counted on from there


def test_rollback_past_a_damaged_checkpoint_keeps_the_whole_one(tmp_path: Path) -> None:
    """The next checkpoint must not move the damaged one to the place of the whole one."""
    root, checkpoints = small_coco(tmp_path / "set", 8), tmp_path / "run" / "checkpoints"
    words = (*WORDS, "train.on_nonfinite=rollback", "train.eval_every=2", "train.save_every_steps=2")
    trainer = Trainer(tiny_config(root, tmp_path / "run", *words), "test")
    whole: list[int] = []

    def save_and_damage(kept: Checkpoints, name: str) -> None:
        save(kept, name)
        path = checkpoints / "last.pt"
        if trainer.progress.step == 6:
            path.write_bytes(path.read_bytes()[:-100])
        elif trainer.progress.step > 6:
            whole.append(load_checkpoint(checkpoints / "previous.pt")["step"])

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        spoil_steps(patch, {7}, float("nan"))
        patch.setattr(Checkpoints, "save", save_and_damage)
        trainer.run()
    assert whole[0] == 4
    assert (checkpoints / "damaged.pt").exists()


def test_rollback_without_a_checkpoint_stops(tmp_path: Path) -> None:
    root = small_coco(tmp_path / "set", 8)
    reason = "not finite at step 2.*there is no checkpoint yet"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match=reason):
        spoil_steps(patch, {2}, float("nan"))
        Trainer(tiny_config(root, tmp_path / "run", *WORDS, "train.on_nonfinite=rollback"), "test").run()


@pytest.mark.parametrize("clip", [None, 10])
@pytest.mark.parametrize(
    ("amp", "precision"),
    [
        (None, None),
        (torch.bfloat16, "set train.amp=off"),
        (torch.float16, "set train.amp=bf16 or off"),
    ],
)
def test_no_remedy_is_advised_that_is_applied_already(
    tmp_path: Path, clip: int | None, amp: torch.dtype | None, precision: str | None
) -> None:
    words = [] if clip is None else [f"optimizer.clip_norm={clip}"]
    config = tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run", *words)
    losses = Losses({"box": torch.tensor(torch.nan), "classification": torch.tensor(1.0)}, torch.tensor(3))
    step = NonFiniteStep(7, losses, [2, 0])
    clipping = "set optimizer.clip_norm=10" if clip is None else None
    remedies = " or ".join(one for one in ("lower optimizer.lr", clipping, precision) if one)
    for processes, whose in ((1, "images"), (2, "images of the first of 2 processes")):
        assert not_finite(step, build_set(config.data, "train"), processes, config, amp) == (
            f"the loss is not finite at step 7 (box nan; {whose} 2.png, 0.png); {remedies}, and start again "
            "or from a checkpoint (--resume)"
        )


def test_the_watch_forgets_faults_of_an_epoch_ago() -> None:
    watch = NonFiniteWatch(torch.device("cpu"), limit=2, steps_per_epoch=10)
    losses = Losses({"box": torch.tensor(torch.inf), "classification": torch.tensor(1.0)}, torch.tensor(3))
    spoilt = (1, 2, 11, 13, 14)  # the third opens the next ten steps, the last is one too many in these
    for step in range(1, 31):
        watch.note(torch.tensor(step in spoilt), step, losses, [step, step + 1])
        faults = watch.found(wait=False)
        assert [(fault.step, fault.rows) for fault in faults] == (
            [(step, [step, step + 1])] if step in spoilt else []
        )
        if faults:
            assert str(faults[0]) == "box inf"
            assert watch.count_in(faults, step) == (step == 14)
    assert watch.count == 5


def test_of_short_epochs_more_than_one_is_looked_at() -> None:
    """Otherwise there would never be too many, even if all steps failed."""
    watch = NonFiniteWatch(torch.device("cpu"), limit=3, steps_per_epoch=2)
    losses = Losses({"box": torch.tensor(torch.inf)}, torch.tensor(3))
    stopped = []
    for step in range(1, 5):
        watch.note(torch.tensor(True), step, losses, [])
        stopped.append(watch.count_in(watch.found(wait=False), step))
    assert stopped == [False, False, False, True]
    assert watch.limit_in_words == "more than train.max_nonfinite=3 within 4 steps"


def test_statistics_go_back_where_a_fault_says_so() -> None:
    norm = nn.BatchNorm2d(2)
    statistics = RunningStatistics(nn.Sequential(norm))
    statistics.keep()
    norm(torch.full((1, 2, 3, 3), torch.nan))
    statistics.restore_where(torch.tensor(True))
    assert norm.running_mean.tolist() == [0, 0] and int(norm.num_batches_tracked) == 0
    norm(torch.ones(1, 2, 3, 3))
    statistics.restore_where(torch.tensor(False))
    assert norm.running_mean.tolist() == pytest.approx([0.1, 0.1])


def test_out_of_memory_while_building_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("detector.training.assembly.place", full)
    with pytest.raises(InputError, match="too little memory"):
        Trainer(tiny_config(small_coco(tmp_path / "set", 4), tmp_path / "run"), "test")


def test_a_checkpoint_that_falls_due_at_a_fault_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train.epochs=1", "train.on_nonfinite=skip", "train.save_every_steps=4")
    config = tiny_config(small_coco(tmp_path / "set", 16), tmp_path / "run", *words)
    saved: list[int] = []
    monkeypatch.setattr(
        "detector.training.checkpoints.save_checkpoint", lambda *a: saved.append(a[1]["step"])
    )
    spoil_steps(monkeypatch, {4}, torch.nan)
    Trainer(config, "test").run()
    assert list(dict.fromkeys(saved)) == [5, 8]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB, other: 1 GB). Tried to"),
        MemoryError(),
    ],
    ids=["allocator", "driver", "cublas", "cudnn", "mps", "python"],
)
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    with pytest.raises(InputError) as caught, memory_explained(torch.device("cuda")):
        raise error
    for word in ("cuda has too little memory", "train.accumulate", "train.batch_size", "--resume"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logits_that_cannot_be_ranked_leave_no_part_of_the_network_without_a_gradient() -> None:
    """Other processes would wait for that gradient."""
    logits, deltas = (torch.zeros(1, 4, n, requires_grad=True) for n in (2, 4))

    def refuse() -> Losses:
        raise NonFiniteLogits("the first is nan")

    positives = Positives(deltas, torch.zeros(4, 4), torch.zeros(4, 4))
    _, total = _checked(refuse, [Matched(logits, torch.zeros(1, 4, 2, dtype=torch.int8), positives)])
    total.backward()
    assert all(x.grad is not None and x.grad.isnan().all() for x in (logits, deltas))
