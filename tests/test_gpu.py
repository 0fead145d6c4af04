"""What only a GPU can show; skipped where there is none. The oracles are the CPU's."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from detector.losses import (
    alrp_loss,
    ap_loss,
    class_alrp_loss,
    class_ap_loss,
    class_rank_sort_loss_of,
    rank_sort_loss,
)
from detector.memory import memory_explained
from detector.predictor import Detector
from detector.training.monitor import Monitor
from detector.training.trainer import Trainer
from errors import InputError
from tests import oracles
from tests.builders import AUGMENTED, TINY_MODEL, small_coco
from tests.runs import last, read_metrics, tiny_config

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.xdist_group("gpu"),
]
GPU = torch.device("cuda")


@pytest.fixture(params=["Triton", "PyTorch alone"])
def both_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """PyTorch's own operations are used if deterministic algorithms are requested."""
    torch.use_deterministic_algorithms(request.param == "PyTorch alone", warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def case(dtype: torch.dtype, count: int = 3000, positives: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, generator=generator)
    logits[::7] = logits[::7].round()  # ties, and values on break points
    targets = torch.zeros(count, dtype=torch.int8)
    targets[:positives], targets[positives : 2 * positives] = 1, -1
    logits = (logits + targets).to(dtype)
    logits[2 * positives - 1] = math.inf  # an ignored one
    return logits, targets


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    info = torch.finfo(dtype)
    half = dtype in (torch.float16, torch.bfloat16)
    smallest = info.smallest_normal * info.eps  # step of the subnormal numbers, which float16 soon reaches
    return {"rtol": info.eps if half else 1e-6, "atol": max(1e-9, smallest)}


@pytest.mark.usefixtures("both_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0, 3.0])
def test_the_ap_loss_follows_the_definition(delta: float, dtype: torch.dtype) -> None:
    logits, targets = case(dtype)
    leaf = logits.to(GPU).requires_grad_()
    loss = ap_loss(leaf, targets.to(GPU), delta)
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected, entries = oracles.ap_loss(logits.double().tolist(), targets.tolist(), delta, True)
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(
        gradient.double().cpu(), torch.tensor(entries, dtype=torch.float64), **tolerance(dtype)
    )


@pytest.mark.usefixtures("both_kernels")
def test_the_other_losses_are_those_of_the_cpu() -> None:
    """The CPU's own oracles are double loops. Many positives and blocks, and a non-contiguous layout."""
    logits, targets = case(torch.float32, 300_000, 2000)
    logits, targets = (x.view(-1, 4).T for x in (logits, targets))
    generator = torch.Generator().manual_seed(1)
    errors = torch.rand(2000, generator=generator)
    quality = targets.float()
    quality[targets == 1] = 1 - errors.clamp_max(0.99)

    def run(device: torch.device) -> list[Tensor]:
        leaf, classes = logits.to(device).requires_grad_(), targets.to(device)
        boxes = errors.to(device).requires_grad_()
        alrp = alrp_loss(leaf, classes, boxes)
        sort = rank_sort_loss(leaf, quality.to(device))
        by_class = [
            class_ap_loss(leaf.T, classes.T),
            *class_alrp_loss(leaf.T, classes.T, boxes),
            *class_rank_sort_loss_of(leaf.T, classes.T, 1 - boxes.detach().clamp_max(0.99)),
        ]
        parts = [*alrp, *sort, *by_class, ap_loss(leaf, classes)]
        grads = [torch.autograd.grad(x, (leaf, boxes), retain_graph=True, allow_unused=True) for x in parts]
        flat = [g for pair in grads for g in pair if g is not None]
        return [x.detach().double().cpu() for x in (*parts, *flat)]

    for mine, its in zip(run(GPU), run(torch.device("cpu")), strict=True):
        torch.testing.assert_close(mine, its, rtol=2e-6, atol=1e-11)


SHORT = ("train.log_every=1", "train.epochs=2", AUGMENTED)


def train(root: Path, run: Path, *words: str) -> list[float]:
    """Train, and return the loss of each step."""
    Trainer(tiny_config(root, run, *SHORT, *words), "test").run()
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


@pytest.fixture(scope="module")
def of_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A set, and the losses of a run on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    root = small_coco(folder / "set", 16)
    return root, train(root, folder / "run")


@pytest.mark.parametrize(("amp", "within"), [("off", 0.02), ("bf16", 0.1), ("fp16", 0.1)])
def test_a_training_has_the_losses_of_the_cpu(
    of_the_cpu: tuple[Path, list[float]], tmp_path: Path, amp: str, within: float
) -> None:
    """And its checkpoint is read on the CPU too: predictions agree."""
    root, expected = of_the_cpu
    run = tmp_path / "run"
    words = (f"train.amp={amp}", "train.device=cuda", "data.workers=2", "train.ema_decay=0.9")
    losses = train(root, run, *words)
    assert losses == pytest.approx(expected, rel=within)
    image = root / "images" / "0.png"
    weights = run / "checkpoints" / "last.pt"
    here, there = (Detector.load(weights, name, ["train.amp=off"])(image).scores for name in ("cuda", "cpu"))
    assert len(there) > 5
    np.testing.assert_allclose(here[:5], there[:5], rtol=0.01)


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_stopped_run_goes_on_where_it_was(
    tmp_path: Path, amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to rounding: a GPU adds in varying order. The loss scale of fp16 is restored too."""
    root, straight, stopped = small_coco(tmp_path / "set", 16), tmp_path / "straight", tmp_path / "stopped"
    words = (*SHORT, f"train.amp={amp}", "train.device=cuda", "train.save_every_steps=1")
    expected = train(root, straight, *words)
    advance, count = Monitor.advance, itertools.count(1)

    def advance_to_the_third_step(monitor: Monitor) -> None:
        advance(monitor)
        if next(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Monitor, "advance", advance_to_the_third_step)
        train(root, stopped, *words)
    assert 0 < last(stopped)["step"] < len(expected)
    Trainer(tiny_config(root, stopped, *words), "test", resume=stopped).run()
    assert [line["loss"] for line in read_metrics(stopped) if "loss" in line] == pytest.approx(
        expected, rel=0.02
    )
    scales = [last(run)["training"]["scaler"] for run in (straight, stopped)]
    assert scales[0] == scales[1]


def test_one_process_with_nccl_trains_and_evaluates(tmp_path: Path) -> None:
    root, run = small_coco(tmp_path / "set", 8), tmp_path / "run"
    words = [word for word in TINY_MODEL if not word.startswith("train.device")]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        "train.py",
    ]
    settings = [f"data.root={root}", "data.format=coco", f"run.dir={run}", "train.epochs=1", *words]
    done = subprocess.run(
        [*command, "configs/demo.yaml", *settings, "train.sync_batch_norm=true"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert last(run)["step"] == 4


def test_a_gpu_out_of_memory_says_what_to_lower() -> None:
    with pytest.raises(InputError, match="too little memory"), memory_explained(GPU):
        torch.empty(1 << 48, dtype=torch.int8, device=GPU)
