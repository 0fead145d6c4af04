"""The configuration: one frozen record per section, with the type and the meaning of every key.

docs/configuration.md is generated from it by `python -m detector.config_reference`.
"""

import os
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)


def _in_home(path: str | None) -> str | None:
    """A path with ~ for the user's folder, which a shell expands at the beginning of a word alone."""
    return path and os.path.expanduser(path)  # noqa: PTH111  a path stays as it was written otherwise


def _no_two(names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' stands twice")
    return names


def _no_bool(value: Any) -> Any:
    # pydantic takes `true` for 1; in a configuration that is a slip of the pen.
    if isinstance(value, bool):
        raise ValueError(f"a number is wanted, not {str(value).lower()}")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Integer = Annotated[int, BeforeValidator(_no_bool)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1, lt=2**31)]
Whole = Annotated[Integer, Field(ge=0, lt=2**31)]
Names = Annotated[list[str], Field(min_length=1)]
Classes = Annotated[Names, AfterValidator(_no_two)]


def _transform_shaped(value: Any) -> Any:
    shaped = isinstance(value, str) or (
        isinstance(value, dict) and all(isinstance(p, dict) or p is None for p in value.values())
    )
    if not shaped:
        raise ValueError(
            "NAME or NAME: {parameter: value} is wanted, the parameters indented below the name; "
            f"got {value!r}"
        )
    return value


Transform = Annotated[str | dict[str, dict[str, Any] | None], BeforeValidator(_transform_shaped)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    dir: str | None = Field(None, description="the run folder; by default runs/NAME of the configuration")

    _home = field_validator("dir")(_in_home)


class SplitsConfig(Section):
    train: str | Names = Field("train", description="what is trained on; a list is joined")
    val: str | Names = Field("val", description="what is evaluated during training and by default")
    test: str | Names | None = Field(None, description="what evaluate.py --split test scores")

    @field_validator("val", mode="before")
    @classmethod
    def _there_is_one(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("images to evaluate on are needed; python -m data.split sets some aside")
        return value


class TransformsConfig(Section):
    train: list[Transform] = Field(
        ["HorizontalFlip"], description="transforms of the training images, in order: docs/data.md"
    )
    eval: list[Transform] = Field([], description="the same for evaluation; only resizing makes sense")
    min_visibility: Fraction = Field(
        0.3, description="boxes with a smaller part of their area left by a crop are dropped"
    )


class DataConfig(Section):
    format: Literal["coco", "voc", "yolo", "shapes"] = Field(
        "shapes", description="layout of the data set on disk"
    )
    root: str = Field(
        "datasets/shapes", description="folder of the data set; yolo: that of data.yaml, or a .yaml file"
    )
    splits: SplitsConfig = SplitsConfig()
    annotations: str = Field(
        "annotations/{split}.json", description="coco: the annotation file of a split, below root"
    )
    images: str = Field("images", description="coco: the folder of a split's images, below root")
    classes: Classes | None = Field(
        None, description="use only these classes, in this order; by default all that the set has"
    )
    image_size: Annotated[Integer, Field(ge=1, le=20_000)] | None = Field(
        None,
        description="long side of the images of evaluation, in pixels; all that resizes is scaled with it "
        "(by default none). See that the anchors fit: python -m data.check",
    )
    transforms: TransformsConfig = TransformsConfig()
    workers: Annotated[Integer, Field(ge=0, le=1024)] | None = Field(
        None,
        description="loading processes of each process of the training; by default one per spare core, 4 at "
        "most",
    )
    group_by_shape: bool = Field(
        False, description="put training images of like proportions into one batch, for less padding"
    )
    one_orientation: bool | None = Field(
        None,
        description="mirror training images at their diagonal so that those of a step are all upright or all "
        "on their side, as drawn: less padding; by default where D4 (p: 1) turns them anyway",
    )
    cache: Literal["none", "ram", "disk"] = Field(
        "none",
        description="keep the decoded images of a training: in memory, 3 bytes per pixel for each process of "
        "the training, or in a file that later trainings use too",
    )
    cache_dir: str | None = Field(
        None,
        description="cache=disk: the folder of the file; by default next to root, ROOT.cache. Each list of "
        "images has a file of its own: those of earlier lists may be deleted",
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="a training image that is missing or cannot be read: stop, or let the next of the set "
        "stand in for it (leave it out, where that is known at the start and no annotation tells its size)",
    )
    max_skipped: Whole = Field(
        20, description="on_error=skip: so many different images on one process, then stop all the same"
    )
    check: bool = Field(
        True, description="look for faults in the annotations before training; they are said as warnings"
    )
    shapes_train_images: Count = Field(1300, description="shapes: images to generate for training")
    shapes_val_images: Count = Field(200, description="shapes: images to generate for validation")
    shapes_size_px: Annotated[Integer, Field(ge=64, le=10_000)] = Field(
        160, description="shapes: width of an image"
    )
    shapes_imbalance: NonNegative = Field(
        0.5,
        description="shapes: exponent on the class frequencies: 0 makes all classes equally frequent, "
        "0.5 the first 4.5 times as frequent as the last, 1 20 times",
    )

    _home = field_validator("root", "cache_dir")(_in_home)


class AnchorConfig(Section):
    sizes: list[list[Positive]] = Field(
        [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)],
        description="anchor sizes in pixels, one list per level P3 to P7",
    )
    ratios: list[Positive] = Field([0.5, 1.0, 2.0], min_length=1, description="height / width")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "AnchorConfig":
        if len(self.sizes) != 5 or len({len(level) for level in self.sizes}) != 1 or not self.sizes[0]:
            raise ValueError("sizes: five lists (P3 to P7) of the same length are wanted")
        for size, ratio in product({size for level in self.sizes for size in level}, self.ratios):
            if size * min(ratio, 1 / ratio) ** 0.5 <= 1:  # a half on each side of the middle rounds to 0
                raise ValueError(
                    f"sizes: {size:g} px with a ratio of {ratio:g} is at most 1 px wide or high, rounded to 0"
                )
        return self


class ModelConfig(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    pretrained: bool = Field(True, description="start from torchvision's ImageNet weights")
    init: str | None = Field(
        None,
        description="start from this file: a torchvision RetinaNet state dict, a checkpoint or a run folder",
    )
    norm: Literal["batch", "frozen", "group"] = Field(
        "frozen", description="norm of the backbone; frozen only makes sense with pretrained weights"
    )
    frozen_stages: Annotated[Integer, Field(ge=0, le=5)] = Field(
        2, description="backbone stages that are not trained: 1 the stem, 2 the first stage as well ..."
    )
    pyramid_channels: Count = 256
    p6_from: Literal["c5", "p5"] = Field("c5", description="source of P6: c5 (paper), p5 (torchvision)")
    head_width: Count = Field(256, description="channels of the heads' convolutions")
    head_depth: Annotated[Integer, Field(ge=0, le=100)] = Field(
        4, description="convolutions before the output"
    )
    head_norm: Literal["none", "group"] = Field("none", description="norm in the heads")
    prior: Annotated[Number, Field(gt=0, lt=1)] = Field(0.01, description="first score of every anchor")
    anchors: AnchorConfig = AnchorConfig()
    box_std: list[Positive] = Field(
        [0.1, 0.1, 0.2, 0.2], min_length=4, max_length=4, description="spread of dx, dy, dw, dh"
    )

    _home = field_validator("init")(_in_home)


class MatcherConfig(Section):
    name: Literal["iou", "atss"] = Field(
        "iou", description="iou: by two thresholds; atss: by one that is read off each gt box's own anchors"
    )
    positive_iou: Fraction = Field(0.5, description="iou: anchors from this IoU on are positive")
    negative_iou: Fraction = Field(0.4, description="iou: anchors below this IoU are negative")
    candidates: Count = Field(
        9, description="atss: the nearest locations of each pyramid level whose anchors may become positive"
    )
    best_anchor: bool = Field(
        True,
        description="the best anchor of each gt box is positive in any case (atss: where it has no other)",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "MatcherConfig":
        if self.negative_iou > self.positive_iou:
            raise ValueError("negative_iou: must not be above positive_iou")
        return self


class LossConfig(Section):
    name: Literal["ap", "alrp", "rank_sort", "focal", "ce_ohem"] = Field(
        "ap", description="loss of the classification; alrp and rank_sort look at the boxes as well"
    )
    delta: NonNegative | None = Field(
        None,
        description="ap, alrp, rank_sort: half-width of the soft step between two logits; by default the "
        "published one, 1 for ap and alrp, 0.5 for rank_sort",
    )
    interpolated: bool = Field(True, description="ap: use the precision envelope")
    class_by_class: bool = Field(
        False,
        description="ap: rank each class by itself and take the mean, as mean AP does, instead of all "
        "classes together as published",
    )
    self_balance: bool = Field(
        True, description="alrp, rank_sort: scale the box loss to the classification's at every step"
    )
    global_ranking: bool = Field(True, description="with several processes: rank and count over all of them")
    negatives_per_positive: Positive = Field(3.0, description="ce_ohem: hard negatives for each positive")
    focal_alpha: Fraction = Field(0.25, description="focal: weight of the positives")
    focal_gamma: NonNegative = Field(2.0, description="focal: focusing exponent, 0 or at least 1")
    box: Literal["smooth_l1", "giou"] = Field("smooth_l1", description="loss of the boxes")
    box_weight: NonNegative = Field(1.0, description="weight of the box loss in the sum")
    smooth_l1_beta: Positive = Field(1.0, description="where smooth-L1 turns from square to line")

    @field_validator("delta")
    @classmethod
    def _not_tiny(cls, value: float | None) -> float | None:
        if value is not None and (0 < value < 1e-6 or value > 1e6):
            raise ValueError("0 (the plain step) or 1e-6 to 1e6 is wanted")
        return value

    @model_validator(mode="after")
    def _alrp_measures_boxes_by_giou(self) -> "LossConfig":
        if self.name == "alrp" and self.box != "giou":
            raise ValueError("box: alrp measures boxes by GIoU; set loss.box=giou")
        return self


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = Field(0.001, description="learning rate after the warm-up")
    lr_for_batch: Count | None = Field(
        None,
        description="the train.batch_size that lr is meant for; another one scales it in proportion (by "
        "default lr is taken as it stands)",
    )
    momentum: Fraction = Field(0.9, description="sgd only")
    weight_decay: NonNegative = 1e-4
    decay_norm_and_bias: bool = Field(True, description="apply weight_decay to norm layers and biases too")
    clip_norm: Positive | None = Field(None, description="largest norm of the gradient; off by default")


class ScheduleConfig(Section):
    name: Literal["multistep", "cosine"] = "multistep"
    milestones: list[Positive] = Field([], description="multistep: epochs after which lr is multiplied")
    gamma: Positive = Field(0.1, description="multistep: the factor")
    final_factor: Fraction = Field(0.0, description="cosine: lr at the end, as a part of lr")
    warmup_steps: Whole = 500
    warmup_factor: Fraction = Field(1 / 3, description="lr of the first step, as a part of lr")
    image_scales: Annotated[list[Annotated[Positive, Field(le=1)]], Field(min_length=1)] = Field(
        [1.0],
        description="progressive resizing: so many equal parts of the epochs, in which training images are "
        "shrunk to so much of the size that data.transforms gives them; they rise to 1, as [0.5, 0.75, 1] do",
    )

    @field_validator("image_scales")
    @classmethod
    def _rise_to_one(cls, scales: list[float]) -> list[float]:
        if scales != sorted(scales) or scales[-1] != 1:
            raise ValueError("must rise to 1, the size of evaluation, as [0.5, 0.75, 1] does")
        return scales


class TrainConfig(Section):
    epochs: Whole = Field(12, description="0 evaluates the weights that the run begins with")
    batch_size: Count = Field(
        16, description="images per optimizer step, over all processes and micro-batches together"
    )
    accumulate: Count = Field(
        1, description="micro-batches that each process makes of its part of a batch, to save memory"
    )
    rank_accumulated: bool = Field(
        False,
        description="with accumulate: rank over all micro-batches of a step as over one batch, for a "
        "second forward pass of each",
    )
    amp: Literal["auto", "bf16", "fp16", "off"] = Field(
        "auto", description="precision of the network; auto takes bf16 or fp16 where the device is fast in it"
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto", description="memory format of the network; auto: not in float32 on a CPU, where it is slower"
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep only the outputs of the backbone's stages and compute the rest again on the way "
        "back: less memory for more time",
    )
    compile: bool = Field(
        False, description="compile the network with torch.compile, anew for images of other shapes"
    )
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.0, description="keep a moving average of the weights and evaluate that; 0 is off"
    )
    sync_batch_norm: bool = Field(
        False, description="with several processes: batch norm takes its statistics over all of them"
    )
    on_nonfinite: Literal["raise", "skip", "rollback"] = Field(
        "raise",
        description="a step whose loss or gradient is not finite never reaches the weights; then: stop, go "
        "on without it, or go on from the weights of the last checkpoint",
    )
    max_nonfinite: Count = Field(
        10,
        description="on_nonfinite=skip, rollback: so many such steps within an epoch, then stop all the same",
    )
    save_every_steps: Count | None = Field(
        None, description="steps between checkpoints; the end of an epoch always has one"
    )
    save_every_minutes: Positive | None = Field(10.0, description="minutes between checkpoints; null is off")
    seed: Annotated[Integer, Field(ge=0, lt=2**63)] = 0
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    eval_every: Count = Field(1, description="epochs between evaluations; the last epoch always has one")
    log_every: Count = Field(20, description="steps between log lines")
    profile: bool = Field(
        False,
        description="print where the time of a step goes, and write a trace of steps 5 to 10 for TensorBoard",
    )

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value  # YAML reads a plain `off` as false


class EvalConfig(Section):
    batch_size: Count = 8
    score_threshold: Fraction = Field(
        0.0,
        description="only detections above are kept; above 0 costs AP (scores only rank). Of raw scores, "
        "before calibration: predict.py --threshold cuts calibrated ones",
    )
    topk_candidates: Count = Field(1000, description="kept per pyramid level before NMS, by rank")
    nms: Literal["hard", "soft"] = Field(
        "hard",
        description="hard drops boxes that overlap a better one of their class, soft lowers their scores "
        "(Soft-NMS): better where objects overlap",
    )
    nms_threshold: Fraction = Field(
        0.5, description="nms=hard: IoU above which the lower of two boxes is dropped"
    )
    detections_per_img: Count = 100
    backend: Literal["auto", "pycocotools", "faster_coco_eval"] = Field(
        "auto",
        description="who computes the COCO metrics; auto takes faster-coco-eval where it is installed; the "
        "numbers are the same",
    )
    calibrate: bool = Field(
        True, description="turn scores into the probabilities fitted on the validation split; keeps AP"
    )


class Config(Section):
    """The whole configuration."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    matcher: MatcherConfig = MatcherConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


def sub_section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None
