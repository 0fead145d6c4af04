"""The output of a run: progress on the terminal and in log.txt, metrics.jsonl, TensorBoard."""

import errno
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data.progress import has_room_for_a_bar
from detector.config import Config
from detector.config.file import dump_config
from detector.criterion import Losses
from detector.evaluation.coco import CocoResult
from detector.evaluation.table import metrics_table
from detector.memory import peak_bytes
from detector.output import close_output
from detector.training.board import Board, hyperparameters
from detector.training.run_folder import append_metrics
from detector.training.run_log import RunLog

_CLASSES = 100  # maximum number of classes in the table after an epoch
# Left out on the terminal, where lines are short.
_NOT_ON_THE_TERMINAL = ("ranked_negatives", "step_s", "data_wait", "memory_gib")


@dataclass
class StepTimer:
    """Timing since the last logged step."""

    steps: int = 0
    images: int = 0
    waited_s: float = 0.0  # waiting for data
    started: float = field(default_factory=time.perf_counter)

    def speed(self) -> dict[str, float]:
        """Averages over the interval; `data_wait` is the fraction of time spent waiting for data."""
        seconds = time.perf_counter() - self.started
        return {
            "images_per_s": self.images / seconds,
            "step_s": seconds / self.steps,
            "data_wait": self.waited_s / seconds,
        }


class Monitor:
    """Writes everything worth knowing during a run.

    Args:
        folder: the run folder.
        total_steps: steps of the whole run.
        first_step: step at which a resumed run continues.
        purge_step: see `Board`.
        log: log file of the run.
    """

    def __init__(
        self, folder: Path, total_steps: int, first_step: int, purge_step: int | None, log: RunLog
    ) -> None:
        self.folder = folder
        self._log = log
        self._first_step = first_step
        self._began = time.perf_counter()
        self._board = Board(folder, purge_step)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not has_room_for_a_bar(),
            dynamic_ncols=True,
        )

    def config(self, config: Config, lr: float) -> None:
        """Write the resolved configuration; `lr` is the learning rate after scaling to the batch."""
        self._board.config(dump_config(config), self._first_step)
        self._board.begin(hyperparameters(config, lr))

    def advance(self) -> None:
        """Count a step on the progress bar."""
        self._bar.update()

    def evaluating(self) -> None:
        """Show that an evaluation is running, during which no step is counted."""
        self._bar.set_description("evaluating")

    def step(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Log one training step."""
        append_metrics(self.folder, {"step": step, "epoch": round(epoch, 4), **values})
        self._board.step(step, values)
        shown = {name: value for name, value in values.items() if name not in _NOT_ON_THE_TERMINAL}
        short = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        done = (step - self._first_step) / (time.perf_counter() - self._began)  # steps/s, with evaluations
        left = tqdm.format_interval((self._bar.total - step) / done)
        line = f"epoch {epoch:7.2f}  step {step:6d}/{self._bar.total}  {short}  left {left}"
        if self._bar.disable:
            self.say(line)
        else:
            self._log.write(line)
            self._bar.set_postfix_str(f"loss {values['loss']:.3f}")

    def repeat(self, record: dict[str, Any]) -> None:
        """Write a training step to TensorBoard again that only metrics.jsonl still has."""
        values = {k: v for k, v in record.items() if k not in ("step", "epoch") and v is not None}
        self._board.step(record["step"], values)

    def evaluation(
        self,
        step: int,
        epoch: int,
        result: CocoResult,
        extra: dict[str, float],
        pictures: dict[str, NDArray[np.uint8]],
    ) -> None:
        """Log the metrics of an evaluation and print its table.

        Args:
            pictures: validation images, uint8 [H, W, 3], by name.
        """
        self._bar.set_description()
        append_metrics(self.folder, {"step": step, "epoch": epoch, **result.as_json(), **extra})
        self._board.evaluation(step, result, extra)
        self._board.images(step, pictures)
        self.say(metrics_table(result, extra, f"epoch {epoch}", _CLASSES))

    def finish(self, early: str = "") -> None:
        """Mark the run as ended; `early` says why if it ended before its last epoch."""
        self._board.end()
        if early:
            self.say(early)

    def say(self, text: str) -> None:
        """Print lines without breaking the progress bar."""
        self._log.write(text)
        try:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            # The reader has gone (| head) or the terminal is closed. A full disk is ignored; it may get space
            # again.
            if error.errno in (errno.EPIPE, errno.EIO):
                close_output()

    def close(self) -> None:
        """Write what is pending, and close progress bar and event file.

        Raises:
            InputError: no permission or no space.
        """
        self._bar.close()
        self._board.close()


def summary_values(losses: Losses, gradient_norm: Tensor, images: int) -> dict[str, float]:
    """The values of a training step as plain numbers, copied from the device at once.

    Args:
        images: number of images in this process.
    """
    values = {"loss": losses.total, **{f"loss_{name}": value for name, value in losses.parts.items()}}
    values |= {"positives_per_image": losses.positives / images, "gradient_norm": gradient_norm}
    if losses.ranked_share is not None:
        values["ranked_negatives"] = losses.ranked_share
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def memory_gib(device: torch.device) -> float:
    """GiB: the peak of tensors on the GPU, or the memory that this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        return int(statistics.read_text().split()[1]) * resource.getpagesize() / 2**30
    return peak_bytes() / 2**30  # the peak, where the current value is unavailable
