"""Several gloo processes: what they exchange, and that they train as one process does."""

import json
import os
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.order import EpochBatches
from detector.builders.losses import build_exchange
from detector.checkpoint import load_checkpoint
from detector.criterion import Losses
from detector.training.learner import Learner
from detector.training.processes import Processes, _attempt, join_processes
from detector.training.rehearsal import rehearse
from detector.training.sync_norm import SyncBatchNorm, synchronise_norms
from detector.training.trainer import Trainer
from detector.training.validation import Validation
from errors import Bystander, InputError
from tests.builders import small_coco
from tests.processes import joined, run_processes
from tests.runs import difference, read_metrics, tiny_config

# On one worker of the test run: the runs that most tests here look at take a minute.
pytestmark = pytest.mark.xdist_group("processes")

# For each, the loss curve and the evaluation must not depend on the number of processes.
RECIPES = {
    "group": ("model.norm=group",),
    "sync": ("model.norm=batch", "train.sync_batch_norm=true", "train.ema_decay=0.9"),
    "frozen": ("model.norm=frozen", "loss.name=focal"),
    "parts": ("model.norm=group", "train.accumulate=2", "train.rank_accumulated=true"),
    "ranked apart": ("model.norm=group", "train.accumulate=2"),
}
COMMON = (
    "train.batch_size=8",
    "train.epochs=2",
    "train.eval_every=2",
    "train.log_every=1",
    "loss.box=giou",
    "eval.batch_size=3",
)


def train(root: Path, run: Path, recipe: str, processes: Processes) -> None:
    config = tiny_config(root, run, *COMMON, *RECIPES[recipe])
    Trainer(config, "test", processes=processes).run()


def train_all(rank: int, size: int, folder: str) -> None:
    processes = joined()
    for recipe in RECIPES:
        train(Path(folder, "set"), Path(folder, f"{recipe}_{size}"), recipe, processes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes on 1, 2 and 4 processes."""
    folder = tmp_path_factory.mktemp("runs")
    small_coco(folder / "set", 17)
    for recipe in RECIPES:
        train(folder / "set", folder / f"{recipe}_1", recipe, Processes())
    for size in (2, 4):
        (folder / f"store_{size}").mkdir()
        run_processes(_Bound(str(folder)), size, folder / f"store_{size}")
    return folder


class _Bound:
    """`train_all` in a folder; a closure could not be sent to a new process."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, rank: int, size: int) -> None:
        train_all(rank, size, self.folder)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_loss_curve_is_that_of_one_process(runs: Path, recipe: str, size: int) -> None:
    one, several = (
        [line["loss"] for line in read_metrics(runs / f"{recipe}_{n}") if "loss" in line] for n in (1, size)
    )
    assert len(one) == 4
    assert several == pytest.approx(one, rel=2e-4)
    ranked = [
        [line.get("ranked_negatives") for line in read_metrics(runs / f"{recipe}_{n}") if "loss" in line]
        for n in (1, size)
    ]
    assert (ranked[0] == [None] * 4) == (recipe == "frozen")
    assert ranked[1] == ([None] * 4 if recipe == "frozen" else pytest.approx(ranked[0], abs=1e-3))
    assert len(list((runs / f"{recipe}_{size}").glob("events.*"))) == 1  # only the main process writes
    weights = [
        load_checkpoint(runs / f"{recipe}_{n}" / "checkpoints" / "last.pt")["model"] for n in (1, size)
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_speed_is_that_of_all_processes_together(runs: Path, size: int) -> None:
    """The whole batch in the time of a step, even if a step has several micro-batches."""
    for recipe in ("group", "parts"):
        lines = [line for line in read_metrics(runs / f"{recipe}_{size}") if "loss" in line]
        assert [line["images_per_s"] * line["step_s"] for line in lines] == pytest.approx([8] * 4)


def evaluate_only(rank: int, size: int) -> Any:
    """Shards of a validation set on which one process has the most to do."""
    processes = joined()
    folder = Path(os.environ["TEST_FOLDER"])
    trainer = Trainer(resumed_config(folder), "test", folder / "group_1", processes)
    trainer.progress.evaluated = 0
    trainer.run()
    return trainer.progress.metrics


def resumed_config(folder: Path) -> Any:
    return tiny_config(folder / "set", folder / "group_1", *COMMON, *RECIPES["group"])


@pytest.mark.parametrize("size", [2, 4])
def test_the_evaluation_is_that_of_one_process_to_the_last_digit(
    runs: Path, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """17 images in batches of 3 are shared unevenly; the same weights are evaluated."""
    monkeypatch.setenv("TEST_FOLDER", str(runs))
    expected = [line for line in read_metrics(runs / "group_1") if "AP" in line][-1]
    results = run_processes(evaluate_only, size, tmp_path)
    for metrics in results:
        assert json.dumps(metrics) == json.dumps({key: expected[key] for key in metrics})


def talk(rank: int, size: int) -> dict[str, Any]:
    processes = joined()
    told = {
        "worst": processes.largest([3, 1, 7, 5][rank]),
        "agreed": processes.from_main(lambda: f"of {rank}"),
        "gathered": processes.gather({"rank": rank, "large": torch.full((3_000_000,), rank)}),
        "met": processes.barrier(stopping=False),
        "met_stopping": processes.barrier(stopping=rank == size - 1),
    }
    model = nn.BatchNorm1d(4)
    nn.init.constant_(model.weight, rank + 1)
    model.running_mean.fill_(rank + 1)
    processes.share_state(model)
    told["state"] = [model.weight.detach(), model.running_mean]

    order = processes.main_first(lambda: [time.time(), time.sleep(0.3) or time.time()])
    told["main_first"] = processes.gather(order)

    def fail() -> None:
        raise InputError("only here")

    try:
        processes.from_main(fail)
    except (InputError, Bystander) as error:
        told["failure"] = type(error).__name__
    return told


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    """This includes values that are too large for the store."""
    told = run_processes(_talk_and_count, 4, tmp_path)
    for rank, one in enumerate(told):
        assert one["worst"] == 7
        assert one["agreed"] == "of 0"
        assert (one["met"], one["met_stopping"]) == (False, True)
        assert all(torch.equal(value, torch.ones(4)) for value in one["state"])
        assert one["failure"] == ("InputError" if rank == 0 else "Bystander")
        assert (one["main_first"] is None) == (rank > 0)
        assert one["gathered"] == ([(k, 3_000_000 * k) for k in range(4)] if rank == 0 else None)

    (_, main_end), *others = told[0]["main_first"]
    assert all(begin >= main_end for begin, _ in others)


def _talk_and_count(rank: int, size: int) -> dict[str, Any]:
    told = talk(rank, size)
    if told["gathered"] is not None:
        told["gathered"] = [(one["rank"], int(one["large"].sum())) for one in told["gathered"]]
    return told


@pytest.mark.parametrize(
    ("device", "local_rank", "named"),
    [
        ("cuda:0", 0, r"train\.device=cuda:0 names a single GPU, .* set train\.device=cuda"),
        ("cuda", 1, r"process 1 of this machine has no GPU \(1 here\).*--nproc-per-node"),
        ("auto", 2, r"process 2 of this machine has no GPU"),
        ("auto", 0, r"cannot connect to each other \(.*MASTER_ADDR.*\); start them with torchrun"),
        ("cpu", 1, r"cannot connect to each other"),
    ],
)
def test_a_launch_that_cannot_be_joined_is_refused(
    device: str, local_rank: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with one GPU, by a launcher that does not say where the others are."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name, value in (("RANK", local_rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", 4)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(InputError, match=named):
        join_processes(device)
    assert taken == ([0] if "MASTER_ADDR" in named else [])


@pytest.mark.parametrize(("nodes", "apart"), [("1", True), ("2", False)])
def test_a_restart_shares_no_key_with_the_start_before_but_where_agents_count_apart(
    nodes: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents of several nodes count restarts separately: their processes would not find each other."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    keys = set()
    for count in ("0", "1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        keys.add(_attempt())
    assert len(keys) == (3 if apart else 1)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"])
def test_tasks_that_do_not_know_of_each_other_are_told(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """srun -n 8 python train.py starts eight trainings; -n 1 is how a single one is started."""
    for known in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(known, raising=False)
    for count, said in (("1", 0), ("8", 1)):
        monkeypatch.setenv(name, count)
        assert join_processes("cpu").size == 1
        assert len(caplog.messages) == said
    assert f"{name}=8: each of these processes trains separately" in caplog.text


def test_one_process_needs_no_group() -> None:
    alone = Processes()
    assert alone.main
    assert (alone.largest(3), alone.from_main(lambda: "a"), alone.gather(1)) == (3, "a", [1])
    assert (alone.barrier(True), alone.barrier(), alone.stop_announced()) == (True, False, False)


def normalise(rank: int, size: int) -> dict[str, Tensor]:
    """Passes one process's part of the batch, of its own size, through a synchronised norm."""
    x = parts()[rank].requires_grad_()
    norm = nn.Sequential(nn.BatchNorm2d(3))
    synchronise_norms(norm, x.device)
    assert isinstance(norm[0], SyncBatchNorm)
    weights = torch.linspace(0, 1, x.numel()).view_as(x)
    y = norm(x)
    (y * weights).sum().backward()
    grads = [norm[0].weight.grad, norm[0].bias.grad]
    return {"y": y.detach(), "x": x.grad, "state": norm.state_dict(), "grads": grads}


def parts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 5, 4, generator=generator) * 3 + 20 for n in (1, 4)]


def test_a_synchronised_norm_is_batch_norm_of_all_batches(tmp_path: Path) -> None:
    """Oracle: torch's batch norm of the joined batch, in float64."""
    results = run_processes(normalise, 2, tmp_path)
    whole = torch.cat(parts()).double().requires_grad_()
    norm = nn.BatchNorm2d(3).double()
    weights = torch.cat([torch.linspace(0, 1, x.numel()).view_as(x) for x in parts()])
    y = norm(whole)
    (y * weights).sum().backward()
    for name, oracle in (("y", y.detach()), ("x", whole.grad)):
        found = torch.cat([one[name] for one in results]).double()
        torch.testing.assert_close(found, oracle, rtol=1e-4, atol=2e-5)
    for one in results:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(
                one["state"]["0." + key].double(), value.double(), rtol=1e-5, atol=1e-5
            )
    summed = [sum(one["grads"][i] for one in results).double() for i in range(2)]
    torch.testing.assert_close(summed[0], norm.weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summed[1], norm.bias.grad, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_samples_does_not_depend_on_processes_and_micro_batches() -> None:
    """Oracle: one process that takes whole batches; and one with as many micro-batches, each of which is
    ranked separately."""
    whole = list(EpochBatches(70, 12, seed=3))
    assert len(whole) == 5
    for micro_batches, processes in ((1, 2), (2, 1), (3, 2), (2, 6), (1, 12)):
        alone = list(EpochBatches(70, 12, 3, micro_batches))
        assert len(alone) == len(EpochBatches(70, 12, 3, micro_batches)) == 5 * micro_batches
        steps = range(0, len(alone), micro_batches)
        assert [[*chain(*alone[i : i + micro_batches])] for i in steps] == whole
        shares = [list(EpochBatches(70, 12, 3, micro_batches, rank, processes)) for rank in range(processes)]
        assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == alone
        assert {len(part) for share in shares for part in share} == {12 // (micro_batches * processes)}


def test_a_batch_that_cannot_be_dealt_out_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"batch_size=16 .* 3 processes x train\.accumulate=2; .* a multiple of 6"
    ):
        EpochBatches(70, 16, 0, micro_batches=2, processes=3)
    with pytest.raises(InputError, match=r"has 3 images, too few for the 4 parts .* \(4 processes x "):
        EpochBatches(3, 8, 0, micro_batches=1, processes=4)


def look_inside(rank: int, size: int) -> dict[str, Any]:
    """Values inside each of two processes that no file shows."""
    processes, folder = joined(), Path(os.environ["TEST_FOLDER"])
    seen: dict[str, Any] = {"warned": 0}
    for word in ("true", "false"):
        loss = tiny_config(folder, folder, f"loss.global_ranking={word}").loss
        seen[f"global_ranking={word}"] = build_exchange(loss).size

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    learner = Learner(model, optimizer, torch.amp.GradScaler("cpu"), None, 0.0)  # type: ignore[arg-type]
    loss = model(torch.ones(1, 2)).sum()
    learner.scaler.scale(loss).backward()
    own = torch.tensor(torch.inf if rank == 1 else 1.0)
    seen["nonfinite"] = bool(learner.update(Losses({"box": own}, torch.tensor(1)))[1])

    detect = Validation.detect

    def look_and_detect(validation: Validation, network: Any, stop: Any) -> Any:
        seen["evaluated"] = {key: value.clone() for key, value in network.state_dict().items()}
        return detect(validation, network, stop)

    def warn(*_: Any) -> None:
        seen["warned"] += 1

    words = ("train.batch_size=4", "train.epochs=1", "data.check=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "detect", look_and_detect)
        patch.setattr("detector.training.assembly.warn_before_training", warn)
        config = tiny_config(folder / "set", folder / "run", *words)
        Trainer(config, "test", processes=processes).run()
    another = tiny_config(folder / "set", folder / "rehearsal", *words)
    seen["rehearsed"] = list(rehearse(another, processes=processes))
    return seen


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("inside")
    small_coco(folder / "set", 4)
    (folder / "store").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_FOLDER", str(folder))
        return run_processes(look_inside, 2, folder / "store")


def test_all_evaluate_the_same_statistics(inside: list[dict[str, Any]]) -> None:
    """With plain batch norm each process has statistics of its own, from its part of every batch."""
    one, other = (seen["evaluated"] for seen in inside)
    assert sum("running" in key for key in one) > 20
    assert difference(one, other) is None


def test_a_loss_that_is_not_finite_in_one_process_is_so_in_all(inside: list[dict[str, Any]]) -> None:
    """In fp16 no gradient tells the others: they would go on while that one rolls back."""
    assert [seen["nonfinite"] for seen in inside] == [True, True]


def test_one_process_speaks_of_the_data(inside: list[dict[str, Any]]) -> None:
    assert [seen["warned"] for seen in inside] == [1, 0]


def test_all_processes_rehearse_together(inside: list[dict[str, Any]]) -> None:
    assert [seen["rehearsed"][-1].partition(":")[0] for seen in inside] == 2 * [
        "run       1 steps and 1 evaluation"
    ]


def test_a_ranking_is_over_all_processes_or_within_each(inside: list[dict[str, Any]]) -> None:
    assert [seen["global_ranking=true"] for seen in inside] == [2, 2]
    assert [seen["global_ranking=false"] for seen in inside] == [1, 1]
