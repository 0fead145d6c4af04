"""Steps whose loss or gradient is not finite: kept from the weights at once, and noticed without waiting."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.sample import DetectionSet
from detector.config import Config
from detector.criterion import Losses
from detector.folding import running_statistics


@dataclass(frozen=True)
class NonFiniteStep:
    """A step that did not count."""

    step: int
    losses: Losses
    rows: list[int]  # of this process's images, in their DetectionSet

    def __str__(self) -> str:
        """Which parts of the loss were not finite; the gradient alone if all of them were."""
        values = {name: float(value) for name, value in self.losses.parts.items()}
        bad = [f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value)]
        return ", ".join(bad) or "the gradient"


def not_finite(
    step: NonFiniteStep, train_set: DetectionSet, processes: int, config: Config, amp: torch.dtype | None
) -> str:
    """Which images it was, and what to do about it that is not done already."""
    remedies = ["lower optimizer.lr"]
    if config.optimizer.clip_norm is None:
        remedies.append("set optimizer.clip_norm=10")
    if amp is not None:
        remedies.append("set train.amp=off" if amp == torch.bfloat16 else "set train.amp=bf16 or off")
    names = ", ".join(Path(train_set.files[row]).name for row in step.rows)
    whose = "images" if processes == 1 else f"images of the first of {processes} processes"
    return (
        f"the loss is not finite at step {step.step} ({step}; {whose} {names}); "
        f"{' or '.join(remedies)}, and start again or from a checkpoint (--resume)"
    )


class NonFiniteWatch:
    """Collects what the device says of each step, and looks at it when it is there.

    Args:
        device: where the steps run. On the CPU each is looked at at once.
        limit: how many there may be within one epoch.
        steps_per_epoch: how long that is.

    Attributes:
        count: of these steps, so far.
        recent: those of the last epoch's length, or of as many steps as it takes to be too many.
    """

    def __init__(self, device: torch.device, limit: int, steps_per_epoch: int) -> None:
        self.count = 0
        self._device = device
        self._limit = limit
        self._window = window_of(steps_per_epoch, limit)
        self.recent: list[int] = []
        self._open: deque[tuple[NonFiniteStep, Tensor, torch.cuda.Event | None]] = deque()

    def note(self, nonfinite: Tensor, step: int, losses: Losses, rows: Sequence[int]) -> None:
        """One step: `nonfinite`, bool [], says on the device whether it was one."""
        event = None
        if self._device.type == "cuda":
            nonfinite = nonfinite.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._open.append((NonFiniteStep(step, losses, list(rows)), nonfinite, event))

    def found(self, wait: bool) -> list[NonFiniteStep]:
        """Those that have come to light since the last call.

        Args:
            wait: for the device to have done all steps.
        """
        found = []
        while self._open:
            step, flag, event = self._open[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            self._open.popleft()
            if bool(flag):
                found.append(step)
        return found

    def too_many(self, found: list[NonFiniteStep], step: int) -> bool:
        """Count those that were found before `step`; whether that is more than there may be."""
        self.count += len(found)
        self.recent += [one.step for one in found]
        self.recent = [at for at in self.recent if at > step - self._window]
        return len(self.recent) > self._limit

    @property
    def too_often(self) -> str:
        """What `too_many` found, in words."""
        return f"more than train.max_nonfinite={self._limit} within {self._window} steps"


def window_of(steps_per_epoch: int, limit: int) -> int:
    """The steps among which more than `limit` are too many: an epoch, unless that has fewer."""
    return max(steps_per_epoch, limit + 1)


class RunningStatistics:
    """Batch norm's running statistics, which a forward pass changes before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = running_statistics(model)
        self._kept = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Remember them as they are."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def restore_where(self, nonfinite: Tensor) -> None:
        """Go back to what was kept if `nonfinite`, bool [], is true, which only the device knows."""
        if nonfinite.device.type == "cpu":
            if nonfinite and self._buffers:
                torch._foreach_copy_(self._buffers, self._kept)
            return
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            torch.where(nonfinite, kept, buffer, out=buffer)
