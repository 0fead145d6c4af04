"""Claim: the exact ranking losses cost about as much as focal loss, however many positives there are.

Forward and backward on the same logits: one of our losses (--loss) and torchvision's `sigmoid_focal_loss`
(sum divided by the number of positives). With --loss ap also the published AP-loss, which loops over the
positives, and the bucketed AP-loss, an approximation. Run from the root: python -m benchmarks.losses
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/losses.py`

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from benchmarks.measure import Timing, devices, in_turns, parser, peak_extra_bytes, progress, report, section
from benchmarks.peers import BucketedAPLoss, LoopAPLoss, TooSlow
from detector.losses import alrp_loss, ap_loss, rank_sort_loss_of

DELTA = 1.0
HEADER = ("logits", "positives", "ours, ms", "focal, ms", "ours / focal", "memory ours", "memory focal")
PEERS = ("bucketed, ms", "loop, ms", "bucketed / ours", "loop / ours")  # for the AP-loss only
NOTE = (
    "Milliseconds of forward and backward: median, and half the interquartile range in per cent. Ours "
    "and focal loss run in turns; a ratio is the median over the turns. Memory: peak of all tensors "
    "beyond logits and targets, the gradient included, in multiples of the logits tensor. The peers get "
    "float32 logits whatever the dtype, focal loss float32 targets."
)
NOTE_ON_PEERS = (
    " Ours and the bucketed one also run in turns; the loop runs separately. '-' means that one pass "
    "takes longer than {limit:g} s. Where the loop finished, the AP-loss and its gradient agree with "
    "it in float64 to {tolerance:g}."
)


def make_logits(distribution: str, size: int, positives: int) -> tuple[Tensor, Tensor]:
    """float32 [size] logits and int8 [size] targets with that many positives at random positions."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.zeros(size, dtype=torch.int8)
    targets[torch.randperm(size, generator=generator)[:positives]] = 1
    noise = torch.randn(size, generator=generator)
    if distribution == "start":  # the classifier's prior of 0.01 at the start of training
        return -math.log(99) + 0.1 * noise, targets
    if distribution == "trained":
        return torch.where(targets == 1, 1.5 * noise, noise - 5), targets
    return noise, targets


def make_loss(name: str, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """One of our losses as a function of the logits, with random box errors if it needs them."""
    positives = (targets == 1).nonzero().squeeze(1)
    errors = torch.rand(len(positives), generator=torch.Generator().manual_seed(1)).to(targets.device)
    if name == "alrp":
        return lambda x: alrp_loss(x, targets, errors, DELTA).ranking_error
    if name == "rank_sort":
        quality = (1 - errors).clamp_min(1e-3)
        return lambda x: torch.stack(rank_sort_loss_of(x, targets, quality)).sum()
    return lambda x: ap_loss(x, targets, DELTA)


def loop_timing(logits: Tensor, targets: Tensor, limit_s: float, repeats: int) -> Timing | None:
    """Forward and backward of the loop; None if one pass takes longer than the limit."""
    leaf = logits.detach().float().requires_grad_()
    started = time.perf_counter()
    try:
        _step(lambda x: LoopAPLoss.apply(x, targets, DELTA, started + limit_s), leaf)
    except TooSlow:
        return None
    affordable = int(limit_s / (time.perf_counter() - started))
    call = {"loop": lambda: _step(lambda x: LoopAPLoss.apply(x, targets, DELTA, math.inf), leaf)}
    return in_turns(call, max(1, min(repeats, affordable)), logits.device, warm_up=0)["loop"]


def disagreement(logits: Tensor, targets: Tensor) -> float:
    """The largest error of the AP-loss against the loop in float64.

    Covers the loss, the positives' and the negatives' gradient, each relative to its largest value.
    """
    mine, exact = logits.detach().clone().requires_grad_(), logits.detach().double().requires_grad_()
    loss = _step(lambda x: ap_loss(x, targets, DELTA), mine)
    exact_loss = _step(lambda x: LoopAPLoss.apply(x, targets, DELTA, math.inf), exact)
    assert mine.grad is not None
    assert exact.grad is not None
    pairs = [(loss.double(), exact_loss)]
    for part in (targets == 1, targets == 0):
        pairs.append((mine.grad[part].double(), exact.grad[part]))
    tiny = torch.finfo(torch.float32).tiny
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(tiny)) for a, b in pairs)


def _step(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor:
    leaf.grad = None
    value = loss(leaf)
    value.backward()
    return value.detach()


def measure(arguments: argparse.Namespace, size: int, positives: int, device: torch.device) -> list[str]:
    """One row of the table."""
    values, targets = (t.to(device) for t in make_logits(arguments.distribution, size, positives))
    logits = values.to(arguments.dtype).requires_grad_()
    focal_logits, focal_targets = logits.detach().float().requires_grad_(), (targets == 1).float()

    chosen = make_loss(arguments.loss, targets)

    def ours() -> Tensor:
        return _step(chosen, logits)

    def bucketed() -> Tensor:
        return _step(lambda x: BucketedAPLoss.apply(x, targets, DELTA), focal_logits)

    def focal() -> Tensor:
        return _step(
            lambda x: sigmoid_focal_loss(x, focal_targets, reduction="sum") / positives, focal_logits
        )

    timings = in_turns({"ours": ours, "focal": focal}, arguments.repeats, device)
    memory = []
    for call, leaf in ((ours, logits), (focal, focal_logits)):
        leaf.grad = None
        memory.append(f"{peak_extra_bytes(call, device) / (leaf.numel() * leaf.element_size()):.1f}")
    mine = timings["ours"]
    row = [
        f"{size:,}",
        f"{positives:,}",
        str(mine),
        str(timings["focal"]),
        f"{mine.ratio_to(timings['focal']):.2f}",
        *memory,
    ]
    if arguments.loss != "ap":
        return row
    # Timed separately, as they leave the caches full of their many temporaries.
    bucket = in_turns({"ours": ours, "bucketed": bucketed}, arguments.repeats, device)
    loop = loop_timing(logits, targets, arguments.loop_limit, arguments.repeats)
    if loop is not None:
        error = disagreement(logits, targets)
        if not error <= _tolerance(arguments.dtype):
            sys.exit(f"error: AP-loss and loop differ by {error:.1e} ({size} logits, {positives} positives)")
    return [
        *row,
        str(bucket["bucketed"]),
        str(loop or "-"),
        f"{bucket['bucketed'].ratio_to(bucket['ours']):.1f}",
        f"{loop.median_s / mine.median_s:,.1f}" if loop else "-",
    ]


def _tolerance(dtype: torch.dtype) -> float:
    return max(1e-5, torch.finfo(dtype).eps)


def _count(text: str) -> int:
    """1e6 is easier to read than 1000000."""
    return int(float(text))


def main() -> None:
    options = parser("Time and memory of a ranking loss against its peers.", repeats=10)
    options.add_argument("--sizes", type=_count, nargs="+", default=[10**5, 10**6, 8 * 10**6])
    options.add_argument("--positives", type=_count, nargs="+", default=[10, 100, 1000, 10**4])
    options.add_argument("--distribution", choices=("randn", "start", "trained"), default="randn")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--loss", choices=("ap", "alrp", "rank_sort"), default="ap")
    options.add_argument("--loop-limit", type=float, default=60, help="seconds the loop may take (60)")
    arguments = options.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype)
    header: tuple[str, ...] = HEADER
    note = NOTE
    if arguments.loss == "ap":
        header += PEERS
        note += NOTE_ON_PEERS.format(limit=arguments.loop_limit, tolerance=_tolerance(arguments.dtype))
    sections = []
    for device in devices(arguments.device):
        rows = []
        for size in arguments.sizes:
            for positives in (p for p in arguments.positives if p < size):
                rows.append(measure(arguments, size, positives, device))
                progress(f"{device}: " + "  ".join(rows[-1]))
        dtype = str(arguments.dtype).removeprefix("torch.")
        title = f"{arguments.loss} loss: {device}, {dtype}, logits '{arguments.distribution}'"
        sections.append(section(title, header, rows, note))
    report(sections, arguments.output)


if __name__ == "__main__":
    main()
