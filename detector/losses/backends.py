"""What the work on a ranking's logits and steps is done with: numba on a CPU, Triton on a GPU, else PyTorch.

All give the same: PyTorch's is the plain form of each, and the others' tests compare them with it.
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

# A count of nothing, to divide no error by.
_TINY = 1e-300


class Survey(NamedTuple):
    """What there is among the logits and targets of a batch."""

    positives: Tensor  # int32 or int64 [p], the places of the ones among the targets, ascending
    lowest: float  # target, or 0
    highest: float
    near: bool  # whether no logit is too far from 0, or NaN


class Backend:
    """PyTorch's own calls, on any device. The others replace what they are faster at."""

    def targets_of_quality(self, quality: Tensor) -> Tensor | None:
        """The signs of the qualities [M], int8 [M]; None if one is neither -1 nor in [0, 1]."""
        right = bool(((quality == -1) | ((quality >= 0) & (quality <= 1))).all())
        return quality.sign().to(torch.int8) if right else None

    def survey(self, logits: Tensor, targets: Tensor, farthest: float) -> Survey:
        """One look at all logits and targets [M]."""
        positives = (targets == 1).nonzero().squeeze(1)
        if len(logits) == 0:
            return Survey(positives, 0, 0, True)
        extremes = [*torch.aminmax(targets), *torch.aminmax(logits)]
        if logits.device.type != "cpu":
            extremes = [*torch.stack([x.double() for x in extremes]).cpu()]  # one wait for the device
        low, high, *of_logits = (x.item() for x in extremes)
        return Survey(positives, low, high, all(abs(extreme) <= farthest for extreme in of_logits))

    def ascending(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """values [P] sorted, and the order that sorts them; equal ones in any order."""
        return ranking.ascending(values)

    def steps_and_negatives(
        self, f: Tensor, delta: float, logits: Tensor, targets: Tensor
    ) -> tuple["Steps", "Counted"]:
        """The soft steps at the ascending f [P], and the negatives below and above them."""
        steps = SoftSteps(f, delta, len(logits))
        return steps, Negatives(steps, logits, targets)

    def pairs(self, steps: "Steps", f: Tensor, quality: Tensor) -> SortedPositives | CompiledPairs:
        """The positives of these steps, compared by their quality too: float64 [P], as f is ordered."""
        return SortedPositives(f.double(), quality, steps.delta)

    def imprecision(
        self, above_negatives: Tensor, above_positives: Tensor, interpolated: bool
    ) -> tuple[Tensor, Tensor]:
        """One minus the precision at each positive, float64 [P], and the mean of that, float64 [].

        Args:
            above_negatives, above_positives: float64 [P] in ascending order of the logits; of the positives
                the second counts itself as a half.
            interpolated: take the best precision at or below.
        """
        # Where it is small no digits are lost so. A positive counts itself as 1.
        errors = above_negatives / above_positives.add(0.5).add_(above_negatives)
        if interpolated:
            errors = errors.cummin(0).values
        return errors, errors.mean()

    def shares(self, errors: Tensor, above: Tensor) -> Tensor:
        """e_i / (P b_i), what each negative above positive i has of its error; float64 [P] each."""
        return errors / above.clamp_min(_TINY).mul_(len(errors))

    def hand_out(self, errors: Tensor, order: Tensor, own: slice, places: Tensor, out: Tensor) -> None:
        """-e_i / P for each positive of this process, into its place in the gradient `out`.

        errors: [P] in the order of the steps; `order` and `own`: where this process's are among them.
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
        if out.dtype == torch.bfloat16:  # NumPy has none
            super().hand_out(errors, order, own, places, out)
        else:
            compiled.hand_out(errors, order, own, places, out)


class TritonBackend(Backend):
    """Kernels of our own on a GPU, in a third of the memory and of the launches."""

    def steps_and_negatives(
        self, f: Tensor, delta: float, logits: Tensor, targets: Tensor
    ) -> tuple["Steps", "Counted"]:
        from detector.losses.gpu import GpuNegatives, GpuSteps  # only where there is Triton

        steps = GpuSteps(f, delta)
        return steps, GpuNegatives(steps, logits, targets)


def backend_of(device: torch.device) -> Backend:
    """What suits a device best of what works there."""
    if device.type == "cpu" and numba_works():
        return NumbaBackend()
    # Triton's sums change in the last bit from run to run.
    exact = torch.are_deterministic_algorithms_enabled()
    if device.type == "cuda" and not exact and _triton_works(device):
        return TritonBackend()
    return Backend()


def in_given_order(values: Tensor, order: Tensor) -> Tensor:
    """The reverse of sorting: values [P] as they stood before `order` was applied."""
    # scatter_ takes a third of the time of indexing.
    return torch.empty_like(values).scatter_(0, order.long(), values)


@cache
def _triton_works(device: torch.device) -> bool:
    """Whether Triton is there, and can build for a GPU; one line is logged where it cannot."""
    if find_spec("triton") is None:  # it comes with PyTorch for CUDA on Linux
        return False
    try:
        from detector.losses import kernels

        kernels.try_out(device)
    except Exception as error:  # whatever a compiler, a linker and a driver may have to say
        if any(words in str(error) for words in ("out of memory", "CUDA error")):  # no fault of Triton's
            raise
        reason = first_line(error)
        log.warning(
            "Triton is installed but does not work here (%s), so losses are computed without it, more "
            "slowly; it needs a C compiler and Python's headers (python3-dev)",
            reason,
        )
        return False
    return True
