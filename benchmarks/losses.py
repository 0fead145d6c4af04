"""Claim: the exact AP-loss costs about as much as focal loss, however many positives there are.

Forward and backward of three losses on the same float32 logits: `ap_loss`, torchvision's
`sigmoid_focal_loss` (summed, divided by the positives), and the AP-loss as published, which loops over
the positives. Run from the root of the repository: python -m benchmarks.losses
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/losses.py`

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from benchmarks.measure import Timing, devices, in_turns, parser, peak_extra_bytes, progress, report, section
from detector.losses import ap_loss

DELTA = 1.0
HEADER = (
    "logits",
    "positives",
    "AP-loss, ms",
    "focal, ms",
    "loop, ms",
    "AP-loss / focal",
    "loop / AP-loss",
    "memory AP-loss",
    "memory focal",
)
NOTE = (
    "Milliseconds of forward and backward: median, and half the interquartile range in per cent. "
    "AP-loss and focal loss run in turns and their ratio is the median over the turns; the loop runs by "
    "itself, and '-' stands where one pass takes longer than {limit:g} s. Memory: the most that tensors "
    "take beyond logits and targets, in multiples of the logits tensor, the gradient included. Focal loss "
    "and the loop get the logits as float32 whatever the dtype, focal loss its targets as float32. "
    "Where the loop finished, the AP-loss and its gradient agree with it in float64 to {tolerance:g}."
)


class TooSlow(Exception):
    """The loop was abandoned."""


class LoopAPLoss(torch.autograd.Function):
    """AP-loss as published: for each positive in turn, its relations to all relevant negatives.

    Algorithm 1 of Chen et al. (CVPR 2019) in its vectorised form, with interpolated precision and the
    published implementation's shortcut: negatives further than delta below every positive are dropped.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, delta: float, give_up_at: float) -> Tensor:
        positives = (targets == 1).nonzero().squeeze(1)
        f, order = logits[positives].sort()
        relevant = ((targets == 0) & (logits >= f[0] - delta)).nonzero().squeeze(1)
        n = logits[relevant]
        pulls = torch.zeros_like(n)
        errors = torch.empty_like(f)
        best = f.new_zeros(())
        for i, threshold in enumerate(f):
            if time.perf_counter() > give_up_at:
                raise TooSlow
            a = 0.5 + _soft_step(f - threshold, delta).sum()  # positives above, itself as 1
            pull = _soft_step(n - threshold, delta)
            b = pull.sum()
            precision = a / (a + b)
            share = 1 / (a + b)
            if best <= precision:  # on a GPU this waits for the result, as the published code does
                best = precision
            else:
                share = share * (1 - best) / (1 - precision)
            pulls += pull.mul_(share)
            errors[i] = 1 - best
        gradient = torch.zeros_like(logits)
        gradient[relevant] = pulls / len(f)
        gradient[positives[order]] = -errors / len(f)
        ctx.save_for_backward(gradient)
        return errors.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None


def _soft_step(u: Tensor, delta: float) -> Tensor:
    return u.div_(2 * delta).add_(0.5).clamp_(0, 1)


def make_logits(distribution: str, size: int, positives: int) -> tuple[Tensor, Tensor]:
    """float32 [size] logits and int8 [size] targets with that many positives at random places."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.zeros(size, dtype=torch.int8)
    targets[torch.randperm(size, generator=generator)[:positives]] = 1
    noise = torch.randn(size, generator=generator)
    if distribution == "start":  # the classifier's prior of 0.01, before anything is learnt
        return -math.log(99) + 0.1 * noise, targets
    if distribution == "trained":
        return torch.where(targets == 1, 1.5 * noise, noise - 5), targets
    return noise, targets


def loop_timing(logits: Tensor, targets: Tensor, limit_s: float, repeats: int) -> Timing | None:
    """Forward and backward of the loop; None where one pass takes longer than the limit."""
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

    Of the loss, the positives' gradient and the negatives', each relative to its largest value.
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

    def ours() -> Tensor:
        return _step(lambda x: ap_loss(x, targets, DELTA), logits)

    def focal() -> Tensor:
        return _step(
            lambda x: sigmoid_focal_loss(x, focal_targets, reduction="sum") / positives, focal_logits
        )

    loop = loop_timing(logits, targets, arguments.loop_limit, arguments.repeats)
    if loop is not None:
        error = disagreement(logits, targets)
        if not error <= _tolerance(arguments.dtype):
            sys.exit(f"error: AP-loss and loop differ by {error:.1e} ({size} logits, {positives} positives)")
    timings = in_turns({"ours": ours, "focal": focal}, arguments.repeats, device)
    memory = []
    for call, leaf in ((ours, logits), (focal, focal_logits)):
        leaf.grad = None
        memory.append(f"{peak_extra_bytes(call, device) / (leaf.numel() * leaf.element_size()):.1f}")
    mine = timings["ours"]
    return [
        f"{size:,}",
        f"{positives:,}",
        str(mine),
        str(timings["focal"]),
        str(loop or "-"),
        f"{mine.ratio_to(timings['focal']):.2f}",
        f"{loop.median_s / mine.median_s:,.1f}" if loop else "-",
        *memory,
    ]


def _tolerance(dtype: torch.dtype) -> float:
    return max(1e-5, torch.finfo(dtype).eps)


def _count(text: str) -> int:
    """1e6 is easier to read than 1000000."""
    return int(float(text))


def main() -> None:
    options = parser("Time and memory of the AP-loss against focal loss and the published loop.", repeats=10)
    options.add_argument("--sizes", type=_count, nargs="+", default=[10**5, 10**6, 8 * 10**6])
    options.add_argument("--positives", type=_count, nargs="+", default=[10, 100, 1000, 10**4])
    options.add_argument("--distribution", choices=("randn", "start", "trained"), default="randn")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    options.add_argument("--loop-limit", type=float, default=60, help="seconds the loop may take (60)")
    arguments = options.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype)
    note = NOTE.format(limit=arguments.loop_limit, tolerance=_tolerance(arguments.dtype))
    sections = []
    for device in devices(arguments.device):
        rows = []
        for size in arguments.sizes:
            for positives in (p for p in arguments.positives if p < size):
                rows.append(measure(arguments, size, positives, device))
                progress(f"{device}: " + "  ".join(rows[-1]))
        dtype = str(arguments.dtype).removeprefix("torch.")
        title = f"Losses: {device}, {dtype}, logits '{arguments.distribution}'"
        sections.append(section(title, HEADER, rows, note))
    report(sections, arguments.output)


if __name__ == "__main__":
    main()
