"""Steps with non-finite loss or gradient: the weights are protected at once, and reporting never waits."""

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
    """A step that was discarded."""

    step: int
    losses: Losses
    rows: list[int]  # this process's images, as rows of their DetectionSet

    def __str__(self) -> str:
        """The parts of the loss that were not finite; "the gradient" if all were finite."""
        values = {name: float(value) for name, value in self.losses.parts.items()}
        bad = [f"{name} {value:g}" for name, value in values.items() if not math.isfinite(value)]
        return ", ".join(bad) or "the gradient"


def not_finite(
    step: NonFiniteStep, train_set: DetectionSet, processes: int, config: Config, amp: torch.dtype | None
) -> str:
    """The message: which images, and which remedies the configuration does not apply yet."""
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
    """Collects each step's flag from the device, and reads it once it has arrived.

    Args:
        device: where the steps run. On the CPU flags can be read immediately.
        limit: how many such steps are allowed within one epoch.
        steps_per_epoch: length of an epoch.

    Attributes:
        count: number of non-finite steps so far.
        recent: numbers of the non-finite steps in the current window, see `window_of`.
    """

    def __init__(self, device: torch.device, limit: int, steps_per_epoch: int) -> None:
        self.count = 0
        self._device = device
        self._limit = limit
        self._window = window_of(steps_per_epoch, limit)
        self.recent: list[int] = []
        self._open: deque[tuple[NonFiniteStep, Tensor, torch.cuda.Event | None]] = deque()

    def note(self, nonfinite: Tensor, step: int, losses: Losses, rows: Sequence[int]) -> None:
        """Record a step; `nonfinite`, bool [] on the device, says whether it was not finite."""
        event = None
        if self._device.type == "cuda":
            nonfinite = nonfinite.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._open.append((NonFiniteStep(step, losses, list(rows)), nonfinite, event))

    def found(self, wait: bool) -> list[NonFiniteStep]:
        """The non-finite steps that have become known since the last call.

        Args:
            wait: wait until the device has finished all steps.
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

    def count_in(self, found: list[NonFiniteStep], step: int) -> bool:
        """Count the steps that were found before `step`; returns whether there are now more than allowed."""
        self.count += len(found)
        self.recent += [one.step for one in found]
        self.recent = [at for at in self.recent if at > step - self._window]
        return len(self.recent) > self._limit

    @property
    def limit_in_words(self) -> str:
        """What is more than allowed."""
        return f"more than train.max_nonfinite={self._limit} within {self._window} steps"


def window_of(steps_per_epoch: int, limit: int) -> int:
    """Number of steps within which more than `limit` are too many: an epoch, or limit + 1 if longer."""
    return max(steps_per_epoch, limit + 1)


class RunningStatistics:
    """Batch norm's running statistics, which a forward pass changes before its loss is known."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers = running_statistics(model)
        self._kept = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def keep(self) -> None:
        """Save the current values."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    @torch.no_grad()
    def restore_where(self, nonfinite: Tensor) -> None:
        """Restore the saved values if `nonfinite`, bool [], is true; this is decided on the device."""
        if nonfinite.device.type == "cpu":
            if nonfinite and self._buffers:
                torch._foreach_copy_(self._buffers, self._kept)
            return
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            torch.where(nonfinite, kept, buffer, out=buffer)
