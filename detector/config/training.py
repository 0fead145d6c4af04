"""The configuration of the run, its steps and its evaluation."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data.sample import SIZE_DIVISOR
from detector.config.fields import (
    Count,
    Fraction,
    Integer,
    NonNegative,
    Number,
    Positive,
    Section,
    Whole,
    in_home,
)


class RunConfig(Section):
    dir: str | None = Field(
        None, description="the run folder; by default runs/NAME, from the name of the configuration"
    )

    @field_validator("dir")
    @classmethod
    def _somewhere(cls, value: str | None) -> str | None:
        return in_home(value) or None


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.001, description="learning rate after the warm-up")
    lr_for_batch: Count | None = Field(
        None,
        description="the train.batch_size that lr is meant for; lr is scaled in proportion to the actual "
        "one (by default lr is used as it is)",
    )
    backbone_lr_factor: Positive = Field(
        1.0, description="lr of the backbone (ResNet without the pyramid), as a fraction of lr"
    )
    momentum: Fraction = Field(0.9, description="sgd only")
    weight_decay: NonNegative = 1e-4
    decay_norm_and_bias: bool = Field(True, description="apply weight_decay to norm layers and biases too")
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient; off by default")


class ScheduleConfig(Section):
    name: Literal["multistep", "cosine"] = "multistep"
    milestones: list[Positive] = Field([], description="multistep: epochs after which lr is multiplied")
    gamma: Annotated[Positive, Field(le=100)] = Field(0.1, description="multistep: the factor")
    final_factor: Fraction = Field(0.0, description="cosine: lr at the end, as a fraction of lr")
    warmup_steps: Whole = 500
    warmup_factor: Fraction = Field(1 / 3, description="lr of the first step, as a fraction of lr")
    image_scales: Annotated[list[Annotated[Positive, Field(le=1)]], Field(min_length=1)] = Field(
        [1.0],
        description="progressive resizing: scales of the training images, relative to the size that "
        "data.transforms gives them, one for each of as many equal parts of the epochs; must rise to 1, as "
        "[0.5, 0.75, 1] does",
    )

    @field_validator("image_scales")
    @classmethod
    def _rise_to_one(cls, scales: list[float]) -> list[float]:
        if scales != sorted(scales) or scales[-1] != 1:
            raise ValueError("must rise to 1, the size of evaluation, as [0.5, 0.75, 1] does")
        return scales


class TrainConfig(Section):
    epochs: Annotated[Integer, Field(ge=0, le=1_000_000)] = Field(
        12, description="number of epochs; 0 evaluates the initial weights"
    )
    batch_size: Count = Field(
        16, description="images per optimizer step, over all processes and micro-batches together"
    )
    accumulate: Count = Field(
        1,
        description="number of micro-batches into which each process divides its part of a batch, to "
        "save memory",
    )
    rank_accumulated: bool = Field(
        False,
        description="with accumulate: rank over all micro-batches of a step as over one batch, at the cost "
        "of a second forward pass for each",
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = Field(
        "auto", description="precision of the network; auto takes bf16 or fp16 where the device is fast in it"
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="use the channels-last memory format for the network; auto: except in float32 "
        "on a CPU, where it is slower",
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep only the outputs of the backbone's stages and recompute the rest in the backward "
        "pass: less memory, more time",
    )
    compile: bool = Field(
        False, description="compile the network with torch.compile, again for each new image shape"
    )
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0,
        description="keep an exponential moving average of the weights with this decay, and evaluate "
        "it; 0 is off",
    )
    sync_batch_norm: bool = Field(
        False, description="with several processes: compute batch norm statistics over all of them"
    )
    on_nonfinite: Literal["raise", "skip", "rollback"] = Field(
        "raise",
        description="what to do after a step whose loss or gradient is not finite, which never changes the "
        "weights: stop, skip the step, or go back to the weights of the last checkpoint",
    )
    max_nonfinite: Count = Field(
        10,
        description="on_nonfinite=skip, rollback: stop if there are more than this many such steps within "
        "an epoch (or in a row, if an epoch has fewer)",
    )
    save_every_steps: Count | None = Field(
        None, description="steps between checkpoints; one is always saved at the end of an epoch"
    )
    save_every_minutes: Positive | None = Field(10.0, description="minutes between checkpoints; null is off")
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    eval_every: Count = Field(1, description="epochs between evaluations; the last epoch is always evaluated")
    patience: Count | None = Field(
        None,
        description="end a run whose AP has not risen for this many epochs (not evaluations), once it is "
        "above 0; null never does. Such a run does not reach the low learning rates at the end of the "
        "schedule, where AP rises most",
    )
    log_every: Count = Field(20, description="steps between log lines")
    profile: bool = Field(
        False,
        description="print how the time of a step is spent, and write a trace of steps 5 to 10 for "
        "TensorBoard",
    )

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a plain `off` as false


class EvalConfig(Section):
    batch_size: Count = 8
    score_threshold: Fraction = Field(
        0.0,
        description="minimum score of detections; above 0 costs AP (scores only rank). Applies to raw "
        "scores, before calibration; for calibrated ones use predict.py --threshold",
    )
    topk_candidates: Count = Field(1000, description="detections kept per pyramid level before NMS, by rank")
    nms: Literal["hard", "soft"] = Field(
        "hard",
        description="hard drops boxes that overlap a better one of their class; soft lowers their scores "
        "(Soft-NMS), which is better where objects overlap",
    )
    nms_threshold: Fraction = Field(
        0.5,
        description="nms=hard, and between tiles: IoU above which the lower-scoring of two boxes is dropped",
    )
    detections_per_img: Count = Field(
        100,
        description="maximum number of detections per image, of all classes together, the best by their "
        "raw scores; with loss.class_by_class, where each class has its own scale of scores, a rare class "
        "may need more",
    )
    backend: Literal["auto", "pycocotools", "faster_coco_eval"] = Field(
        "auto",
        description="library that computes the COCO metrics; auto uses faster-coco-eval if it is "
        "installed; the results are the same",
    )
    tile: Count | None = Field(
        None,
        description="cut images that are larger than this after data.transforms.eval into overlapping "
        "tiles with sides of this many pixels, a multiple of 32; null processes each image as a whole",
    )
    tile_overlap: Whole = Field(
        128,
        description="pixels by which neighbouring tiles overlap; should be the size of the largest objects",
    )
    tile_batch_size: Count = Field(8, description="tiles per batch")
    flip: bool = Field(
        False,
        description="also evaluate the mirror image of each image and average both: some AP for twice the "
        "time; not suitable if left and right distinguish classes",
    )
    calibrate: bool = Field(
        True,
        description="convert scores into probabilities, as fitted on the validation split; AP does "
        "not change",
    )

    @property
    def nms_threshold_counts(self) -> bool:
        """Whether nms_threshold is used: by hard NMS, or to merge tiles."""
        return self.nms == "hard" or self.tile is not None

    @model_validator(mode="after")
    def _tiles_fit(self) -> "EvalConfig":
        if self.tile is None:
            return self
        if self.tile % SIZE_DIVISOR:
            below = self.tile // SIZE_DIVISOR * SIZE_DIVISOR
            near = f"{below} or {below + SIZE_DIVISOR}" if below else f"{SIZE_DIVISOR}"
            raise ValueError(f"tile: {self.tile} is not a multiple of {SIZE_DIVISOR}; use {near}")
        if self.tile_overlap >= self.tile:
            default = " (its default)" * ("tile_overlap" not in self.model_fields_set)
            raise ValueError(
                f"tile_overlap: {self.tile_overlap}{default} must be below tile, {self.tile}; set both"
            )
        return self
