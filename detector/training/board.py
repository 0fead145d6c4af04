"""What a run writes to each tab of TensorBoard."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from detector.builders.losses import ranking_delta
from detector.config import Config
from detector.evaluation.coco import CocoResult
from detector.evaluation.curves import curves
from errors import InputError

_THRESHOLDS = np.linspace(0, 1, 101)  # of the PR curves; TensorBoard allows at most 127
_CLASSES = 100  # maximum number of PR curves; each takes 2.5 kB per evaluation

# The tag of each value in metrics.jsonl; TensorBoard groups tags by the part before the slash.
_STEP_SECTIONS = {
    "loss": "loss/total",
    "lr": "train/lr",
    "gradient_norm": "train/gradient_norm",
    "positives_per_image": "train/positives_per_image",
    "ranked_negatives": "train/ranked_negatives",
    "steps_not_finite": "train/steps_not_finite",
    "images_skipped": "train/images_skipped",
    "images_per_s": "speed/images_per_s",
    "step_s": "speed/step_s",
    "data_wait": "speed/data_wait",
    "memory_gib": "speed/memory_gib",
}
_EVALUATION_SECTIONS = {
    **{name: f"val/{name}" for name in ("AP", "AP50", "AP75", "VOC07", "VOC12")},
    **{name: f"val_size/{name}" for name in ("APs", "APm", "APl", "ARs", "ARm", "ARl")},
    **{name: f"val_recall/{name}" for name in ("AR1", "AR10", "AR100")},
    "calibration_error": "val_calibration/error",
    "calibration_error_raw": "val_calibration/error_raw",
    "calibration_error_held_out": "val_calibration/error_held_out",
}
# Metrics in the HParams tab.
_COMPARED = ("val/AP", "val/AP50", "val/AP75")
_FIRST_COLUMNS = ("loss.name", "model.backbone", "optimizer.lr", "train.batch_size", "train.epochs")

# Charts with several curves, in the Custom Scalars tab.
_LAYOUT = {
    "Validation": {
        "AP": ["Multiline", ["val/AP", "val/AP50", "val/AP75"]],
        "AP of each class": ["Multiline", ["val_class_AP/.*"]],
        "AP by size": ["Multiline", ["val_size/AP.*"]],
        "AP50 lost to each kind of error": ["Multiline", ["val_errors/.*"]],
    },
    "Training": {"losses": ["Multiline", ["loss/.*"]]},
}


class Board:
    """Writes the event file of a run.

    Args:
        folder: the run folder.
        purge_step: hide events from this step on that an earlier part of the run has left.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self._folder = folder
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        with self._writing():
            self._writer.add_custom_scalars(_LAYOUT)

    def config(self, text: str, step: int) -> None:
        """Text: the resolved configuration from this step on."""
        with self._writing():
            self._writer.add_text("config", "\n".join("    " + line for line in text.splitlines()), step)

    def begin(self, values: dict[str, bool | float | str]) -> None:
        """HParams: the settings of this run; TensorBoard takes its metrics from the newest scalars.

        SummaryWriter.add_hparams would create a separate run in a subfolder.
        """
        experiment, session, self._end_of_session = hparams(values, dict.fromkeys(_COMPARED, 0.0))
        data = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(data.content)
        for info in content.experiment.hparam_infos:
            info.differs = info.name in _FIRST_COLUMNS  # five are shown, these first
        data.content = content.SerializeToString()
        self._summaries(experiment, session)

    def end(self) -> None:
        """HParams: the run has ended."""
        self._summaries(self._end_of_session)

    def step(self, step: int, values: dict[str, float]) -> None:
        """Scalars of a training step, named as in metrics.jsonl."""
        self._scalars(
            {_STEP_SECTIONS.get(k, f"loss/{k.removeprefix('loss_')}"): v for k, v in values.items()}, step
        )

    def evaluation(self, step: int, result: CocoResult, extra: dict[str, float]) -> None:
        """Scalars and PR curves. Values of -1, i.e. without gt boxes, are left out."""
        values = {_EVALUATION_SECTIONS[name]: value for name, value in {**result.summary, **extra}.items()}
        values |= {f"val_class_AP/{name}": one.ap for name, one in result.per_class.items()}
        kinds = list(result.errors.costs().items())[:6]  # without the two sums
        values |= {f"val_errors/{name}": cost.ap50 for name, cost in kinds}
        self._scalars({tag: value for tag, value in values.items() if value >= 0}, step)
        self._pr_curves(step, result)

    def images(self, step: int, pictures: dict[str, NDArray[np.uint8]]) -> None:
        """Images: uint8 [H, W, 3] each, by name.

        Written as JPEG; SummaryWriter.add_image would write PNG, which is much larger and slower.
        """
        for name, picture in pictures.items():
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "JPEG", quality=90)
            height, width, _ = picture.shape
            image = Summary.Image(
                height=height, width=width, colorspace=3, encoded_image_string=encoded.getvalue()
            )
            value = Summary.Value(tag=_text(f"val_images/{name}"), image=image)
            self._summaries(Summary(value=[value]), step=step)

    def close(self) -> None:
        """Write what is pending, and close the file.

        Raises:
            InputError: no permission or no space.
        """
        with self._writing():
            self._writer.close()

    def _pr_curves(self, step: int, result: CocoResult) -> None:
        """PR curves at IoU 0.5. SummaryWriter.add_pr_curve would ignore gt boxes that were not found."""
        with self._writing():
            for one in curves(result, _THRESHOLDS, _CLASSES):
                self._writer.add_pr_curve_raw(
                    _text(f"val_PR/{one.name}"),
                    one.right,
                    one.wrong,
                    np.zeros_like(one.right),  # true negatives are not defined
                    one.gt_boxes - one.right,
                    one.precision,
                    one.recall,
                    step,
                    len(_THRESHOLDS),
                )

    def _summaries(self, *summaries: Summary, step: int | None = None) -> None:
        writer = self._writer.file_writer
        assert writer is not None  # None only after closing
        with self._writing():
            for summary in summaries:
                writer.add_summary(summary, step)

    def _scalars(self, values: dict[str, float], step: int) -> None:
        with self._writing():
            for tag, value in values.items():
                self._writer.add_scalar(_text(tag), value, step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # TensorBoard writes in its own thread; errors there are raised here later.
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self._folder}/events.* of TensorBoard: {error.strerror}"
            ) from None


def _text(name: str) -> str:
    """Replace what is not UTF-8 (from JSON or file names), which TensorBoard refuses."""
    return name.encode(errors="replace").decode()


def hyperparameters(config: Config, lr: float) -> dict[str, bool | float | str]:
    """The settings by which runs are most often compared; the Text tab has the whole configuration.

    Args:
        lr: learning rate after scaling to the batch.
    """
    model, loss, optimizer, train = config.model, config.loss, config.optimizer, config.train
    return {
        "data.root": _text(config.data.root),
        "loss.box": loss.box,
        "loss.class_by_class": loss.class_by_class,
        "loss.delta": ranking_delta(loss),
        "loss.name": loss.name,
        "model.backbone": model.backbone,
        "model.base_channels": model.base_channels,
        "model.norm": model.norm,
        "model.pretrained": model.pretrained or model.init is not None,
        "optimizer.lr": lr,
        "optimizer.name": optimizer.name,
        "optimizer.weight_decay": optimizer.weight_decay,
        "schedule.image_scales": ", ".join(f"{scale:g}" for scale in config.schedule.image_scales),
        "schedule.name": config.schedule.name,
        "train.amp": train.amp,
        "train.batch_size": train.batch_size,
        "train.ema_decay": train.ema_decay,
        "train.epochs": train.epochs,
        "train.seed": train.seed,
    }
