"""Implementations of a ranking's primitives: numba on a CPU, Triton on a GPU, PyTorch elsewhere.

All give the same results. The PyTorch version is the reference that the tests compare the others with.
"""

import logging
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from detector.losses import compiled, ranking
from detector.losses.compiled import CompiledNegatives, CompiledPairs, CompiledSteps
from detector.losses.machine_code import numba_works
from detector.losses.negatives import Negatives
from detector.losses.ranking import SoftSteps
from detector.losses.sorting import SortedPositives
from errors import first_line

if TYPE_CHECKING:
    from detector.losses.gpu import GpuNegatives, GpuSteps

    Steps = SoftSteps | CompiledSteps | GpuSteps
    Counted = Negatives | CompiledNegatives | GpuNegatives

log = logging.getLogger(__name__)

# Lower bound of divisors: replaces a count of 0, where the error to be divided is 0 as well.
_TINY = 1e-300


class Survey(NamedTuple):
    """A summary of the logits and targets of a batch."""

    positives: Tensor  # int32 or int64 [p], indices of the targets that are 1, ascending
    lowest: float  # target, possibly clamped to at most 0
    highest: float  # target, possibly clamped to at least 0
    near: bool  # no logit is NaN or too far from 0


class Backend:
    """Plain PyTorch, on any device. Subclasses override what they do faster."""

    def targets_of_quality(self, quality: Tensor) -> Tensor | None:
        """The signs of the qualities [M] as int8 [M]; None if one is neither -1 nor in [0, 1]."""
        right = bool(((quality == -1) | ((quality >= 0) & (quality <= 1))).all())
        return quality.sign().to(torch.int8) if right else None

    def survey(self, logits: Tensor, targets: Tensor, farthest: float) -> Survey:
        """Summarise all logits and targets [M]; `farthest`: the largest magnitude that is not too far."""
        positives = (targets == 1).nonzero().squeeze(1)
        if len(logits) == 0:
            return Survey(positives, 0, 0, True)
        extremes = [*torch.aminmax(targets), *torch.aminmax(logits)]
        if logits.device.type != "cpu":
            extremes = [*torch.stack([x.double() for x in extremes]).cpu()]  # a single synchronisation
        low, high, *of_logits = (x.item() for x in extremes)
        return Survey(positives, low, high, all(abs(extreme) <= farthest for extreme in of_logits))

    def ascending(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values [P] sorted, and the permutation that sorts them; ties in any order."""
        return ranking.ascending(values)

    def steps_and_negatives(
        self, f: Tensor, delta: float, logits: Tensor, targets: Tensor
    ) -> tuple["Steps", "Counted"]:
        """The soft steps at the ascending f [P], and the negatives to be counted by them."""
        steps = SoftSteps(f, delta, len(logits))
        return steps, Negatives(steps, logits, targets)

    def pairs(self, steps: "Steps", f: Tensor, quality: Tensor) -> SortedPositives | CompiledPairs:
        """The positives of these steps, compared by quality too; quality: float64 [P], in the order of f."""
        return SortedPositives(f.double(), quality, steps.delta)

    def imprecision(
        self, above_negatives: Tensor, above_positives: Tensor, interpolated: bool
    ) -> tuple[Tensor, Tensor]:
        """One minus the precision at each positive, float64 [P], and the mean over them, float64 [].

        Args:
            above_negatives, above_positives: float64 [P] in ascending order of the logits; in
                above_positives each positive counts itself as 1/2.
            interpolated: take the best precision at this logit or any lower one.
        """
        # This form of 1 - precision keeps its digits where it is small. A positive counts itself as 1.
        errors = above_negatives / above_positives.add(0.5).add_(above_negatives)
        if interpolated:
            errors = errors.cummin(0).values
        return errors, errors.mean()

    def shares(self, errors: Tensor, above: Tensor) -> Tensor:
        """e_i / (P b_i), the share of positive i's error that each negative above it takes; float64 [P]."""
        return errors / above.clamp_min(_TINY).mul_(len(errors))

    def hand_out(self, errors: Tensor, order: Tensor, own: slice, places: Tensor, out: Tensor) -> None:
        """Write -e_i / P of each positive of this process to its index in the gradient `out`.

        errors: [P] in the order of the steps; `order`: the permutation that sorted the gathered positives;
        `own`: this process's slice of them before sorting; places: their flat indices [p].
        """
        mine = in_given_order(errors, order)[own] / -len(errors)
        out.scatter_(0, places.long(), mine.to(out.dtype))


class NumbaBackend(Backend):
    """Loops in machine code on a CPU: one pass where PyTorch takes ten."""

    def targets_of_quality(self, quality: Tensor) -> Tensor | None:
        if quality.dtype not in (torch.float32, torch.float64):
            return super().targets_of_quality(quality)
        return compiled.targets_of_quality(quality)

    def survey(self, logits: Tensor, targets: Tensor, farthest: float) -> Survey:
        return Survey(*compiled.positives_of(targets), compiled.all_within(logits, farthest))

    def ascending(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return compiled.ascending(values)

    def steps_and_negatives(
        self, f: Tensor, delta: float, logits: Tensor, targets: Tensor
    ) -> tuple["Steps", "Counted"]:
        steps = CompiledSteps(f, delta)
        return steps, CompiledNegatives(steps, logits, targets)

    def pairs(self, steps: "Steps", f: Tensor, quality: Tensor) -> CompiledPairs:
        assert isinstance(steps, CompiledSteps)
        return CompiledPairs(steps, quality)

    def imprecision(
        self, above_negatives: Tensor, above_positives: Tensor, interpolated: bool
    ) -> tuple[Tensor, Tensor]:
        return compiled.imprecision(above_negatives, above_positives, interpolated)

    def shares(self, errors: Tensor, above: Tensor) -> Tensor:
        return compiled.shares_of(errors, above, _TINY)

    def hand_out(self, errors: Tensor, order: Tensor, own: slice, places: Tensor, out: Tensor) -> None:
        if out.dtype == torch.bfloat16:  # NumPy has no bfloat16
            super().hand_out(errors, order, own, places, out)
        else:
            compiled.hand_out(errors, order, own, places, out)


class TritonBackend(Backend):
    """Our own kernels on a GPU, with a third of the memory and of the launches."""

    def steps_and_negatives(
        self, f: Tensor, delta: float, logits: Tensor, targets: Tensor
    ) -> tuple["Steps", "Counted"]:
        from detector.losses.gpu import GpuNegatives, GpuSteps  # needs Triton

        steps = GpuSteps(f, delta)
        return steps, GpuNegatives(steps, logits, targets)


def backend_of(device: torch.device) -> Backend:
    """The fastest backend that works on a device."""
    if device.type == "cpu" and numba_works():
        return NumbaBackend()
    # Triton's sums change in the last bit from run to run.
    exact = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda" and not exact and _triton_works(device):
        return TritonBackend()
    return Backend()


def in_given_order(values: Tensor, order: Tensor) -> Tensor:
    """Undo a sort: values [P] in the order they had before `order` was applied."""
    # scatter_ takes a third of the time of indexing.
    return torch.empty_like(values).scatter_(0, order.long(), values)


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether Triton is installed and can build kernels for a GPU; logs one line if it cannot."""
    if find_spec("triton") is None:  # it comes with PyTorch for CUDA on Linux
        return False
    try:
        from detector.losses import kernels

        kernels.try_out(device)
    except Exception as error:  # a compiler, a linker and a driver may each raise their own
        if any(words in str(error) for words in ("out of memory", "CUDA error")):  # not Triton's fault
            raise
        reason = first_line(error)
        log.warning(
            "Triton is installed but does not work here (%s), so losses are computed without it, more "
            "slowly; it needs a C compiler and Python's headers (python3-dev)",
            reason,
        )
        return False
    return True
