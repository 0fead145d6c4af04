"""What a run shows: progress on the terminal, metrics.jsonl, TensorBoard."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from detector.criterion import Losses
from detector.evaluation.coco import COCO_NAMES, CocoResult
from detector.evaluation.error_breakdown import SHORT_NAMES
from detector.training.run_folder import append_metrics
from errors import InputError


class Monitor:
    """Writes everything that is worth knowing while a run goes on.

    Args:
        folder: the run folder.
        total_steps: of the whole run.
        first_step: where a resumed run continues; events after it are hidden by TensorBoard.
    """

    def __init__(self, folder: Path, total_steps: int, first_step: int) -> None:
        self.folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def config(self, text: str) -> None:
        """Show the resolved configuration in TensorBoard's Text tab."""
        with self._writing_events():
            self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()))

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def step(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Log one training step."""
        append_metrics(self.folder, {"step": step, "epoch": round(epoch, 4), **values})
        self._scalars({f"train/{name}": value for name, value in values.items()}, step)
        short = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable:
            self.say(f"epoch {epoch:7.2f}  step {step:6d}/{self._bar.total}  {short}")
        else:
            self._bar.set_postfix_str(f"loss {values['loss']:.3f}")

    def evaluation(self, step: int, epoch: int, result: CocoResult, extra: dict[str, float]) -> None:
        """Log the metrics of an evaluation and print its table."""
        append_metrics(self.folder, {"step": step, "epoch": epoch, **result.as_json(), **extra})
        self._scalars({f"val/{name}": value for name, value in {**result.summary, **extra}.items()}, step)
        self._scalars({f"val_class_AP/{name}": one.ap for name, one in result.per_class.items()}, step)
        costs = result.errors.costs()
        self._scalars({f"val_errors_AP50/{name}": cost.ap50 for name, cost in costs.items()}, step)
        self.say(metrics_table(result, extra, f"epoch {epoch}"))

    def images(self, step: int, pictures: list[Tensor]) -> None:
        """Show validation images, uint8 [3, H, W] each."""
        with self._writing_events():
            for i, picture in enumerate(pictures):
                self._writer.add_image(f"val/image_{i}", picture, step)

    def say(self, text: str) -> None:
        """Print lines without breaking the progress bar."""
        self._bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Write what is left.

        Raises:
            InputError: no permission or no space.
        """
        self._bar.close()
        with self._writing_events():
            self._writer.close()

    def _scalars(self, values: dict[str, float], step: int) -> None:
        with self._writing_events():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _writing_events(self) -> Iterator[None]:
        # TensorBoard writes in a thread of its own and raises here, later, what went wrong there.
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.folder}/events.* of TensorBoard: {error.strerror}"
            ) from None


def metrics_table(result: CocoResult, extra: dict[str, float], title: str) -> str:
    """The 12 COCO numbers, what there is beside them, then one line per class and what the errors cost."""
    rows = [title, "  ".join(f"{name:>6}" for name in COCO_NAMES)]
    rows.append("  ".join(f"{result.summary[name]:6.3f}" for name in COCO_NAMES))
    if extra:
        rows.append("  ".join(f"{name} {value:.3f}" for name, value in extra.items()))
    width = max([5, *(len(name) for name in result.per_class)])
    rows.append(f"{'class':{width}}  {'AP':>6}  {'AP50':>6}  {'AP75':>6}  {'gt':>6}")
    for name, one in result.per_class.items():
        rows.append(f"{name:{width}}  {one.ap:6.3f}  {one.ap50:6.3f}  {one.ap75:6.3f}  {one.gt_boxes:6d}")
    costs = result.errors.costs()
    rows.append("AP50 to be gained without errors of a kind, and how many there are:")
    rows.append("  ".join(f"{SHORT_NAMES[name]:>11}" for name in costs))
    rows.append("  ".join(f"{cost.ap50:11.3f}" for cost in costs.values()))
    rows.append("  ".join(f"{cost.count:11d}" for cost in costs.values()))
    return "\n".join(rows)


def summary_values(
    losses: Losses, lr: float, gradient_norm: Tensor, images_per_s: float, images: int
) -> dict[str, float]:
    """The scalars of one training step, from tensors to plain numbers at once."""
    values = {"loss": losses.total, **{f"loss_{name}": value for name, value in losses.parts.items()}}
    values |= {"positives_per_image": losses.positives / images, "gradient_norm": gradient_norm}
    numbers = torch.stack([value.float() for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True)) | {"lr": lr, "images_per_s": images_per_s}
