"""The configuration of the network, its anchors, matching and loss."""

from itertools import product
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from detector.config.fields import Count, Fraction, Integer, NonNegative, Number, Positive, Section, in_home

_LARGEST_ANCHOR = 100_000


class AnchorConfig(Section):
    sizes: list[list[Positive]] = Field(
        [[s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (32, 64, 128, 256, 512)],
        description="anchor sizes in pixels, one list per level P3 to P7",
    )
    ratios: list[Positive] = Field([0.5, 1.0, 2.0], min_length=1, description="height / width")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "AnchorConfig":
        if len(self.sizes) != 5 or len({len(level) for level in self.sizes}) != 1 or not self.sizes[0]:
            raise ValueError("sizes: must be five lists (P3 to P7) of the same length")
        for size, ratio in product({size for level in self.sizes for size in level}, self.ratios):
            if size * min(ratio, 1 / ratio) ** 0.5 <= 1:  # half of it on each side of the centre rounds to 0
                raise ValueError(
                    f"sizes: {size:g} px with the ratio {ratio:g} gives an anchor at most 1 px wide or "
                    "high, which rounds to 0"
                )
            if size > _LARGEST_ANCHOR:
                raise ValueError(
                    f"sizes: {size:g} px is larger than any image; the maximum is {_LARGEST_ANCHOR:g}"
                )
        return self


class ModelConfig(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    base_channels: Annotated[Integer, Field(ge=8, le=512, multiple_of=8)] = Field(
        64,
        description="channels of the backbone's first stage; the other stages follow: 32 gives a quarter "
        "of the weights; pretrained weights need 64",
    )
    pretrained: bool = Field(True, description="start from torchvision's ImageNet weights")
    init: str | None = Field(
        None,
        description="start from this file: a torchvision RetinaNet state dict, a checkpoint or a run "
        "folder; or from torchvision's RetinaNet trained on COCO, which is downloaded once: coco, coco_v2",
    )
    init_partial: bool = Field(
        False,
        description="use only the parts of that file that fit: anchors, heads and pyramids that differ "
        "start afresh instead of being refused, and the weights of a backbone alone (with torchvision's "
        "names) are enough",
    )
    norm: Literal["batch", "frozen", "group"] = Field(
        "frozen", description="norm of the backbone; frozen makes sense only with pretrained weights"
    )
    frozen_stages: Annotated[Integer, Field(ge=0, le=5)] = Field(
        2,
        description="number of backbone stages that are not trained: 1 is the stem, 2 adds the first "
        "stage, and so on",
    )
    pyramid_channels: Count = 256
    p6_from: Literal["c5", "p5"] = Field("c5", description="source of P6: c5 (paper), p5 (torchvision)")
    head_width: Count = Field(256, description="channels of the heads' convolutions")
    head_depth: Annotated[Integer, Field(ge=0, le=100)] = Field(
        4, description="convolutions in a head before its output"
    )
    head_norm: Literal["none", "group"] = Field("none", description="norm in the heads")
    prior: Annotated[Number, Field(gt=0, lt=1)] = Field(0.01, description="initial score of every anchor")
    anchors: AnchorConfig = AnchorConfig()
    box_std: list[Positive] = Field(
        [0.1, 0.1, 0.2, 0.2], min_length=4, max_length=4, description="standard deviations of dx, dy, dw, dh"
    )

    _home = field_validator("init")(in_home)

    @model_validator(mode="after")
    def _something_to_normalise(self) -> "ModelConfig":
        if self.head_norm == "group" and self.head_width == 1:
            raise ValueError("head_width: head_norm=group needs at least 2 channels")
        return self

    @model_validator(mode="after")
    def _as_wide_as_imagenets(self) -> "ModelConfig":
        if self.pretrained and self.init is None and self.base_channels != 64:
            raise ValueError(
                f"base_channels: there are no ImageNet weights for {self.base_channels}; train from scratch "
                "with model.pretrained=false model.norm=batch model.frozen_stages=0"
            )
        return self


class MatcherConfig(Section):
    name: Literal["iou", "atss"] = Field(
        "iou",
        description="iou: two fixed thresholds; atss: one threshold per gt box, computed from its "
        "own anchors",
    )
    positive_iou: Fraction = Field(0.5, description="iou: anchors with at least this IoU are positive")
    negative_iou: Fraction = Field(0.4, description="iou: anchors below this IoU are negative")
    candidates: Count = Field(
        9,
        description="atss: number of nearest locations on each pyramid level whose anchors may become "
        "positive",
    )
    best_anchor: bool = Field(
        True,
        description="the best anchor of each gt box is always positive (atss: only if it has no other)",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "MatcherConfig":
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou: {self.negative_iou:g} must not be above positive_iou, {self.positive_iou:g}; "
                "set both"
            )
        return self


class LossConfig(Section):
    name: Literal["ap", "alrp", "rank_sort", "focal", "ce_ohem"] = Field(
        "ap", description="classification loss; alrp and rank_sort also take the boxes into account"
    )
    delta: NonNegative | None = Field(
        None,
        description="ap, alrp, rank_sort: half-width of the soft step between two logits; by default the "
        "published one, 1 for ap and alrp, 0.5 for rank_sort",
    )
    interpolated: bool = Field(True, description="ap: use the precision envelope")
    class_by_class: bool = Field(
        False,
        description="ap, alrp, rank_sort: rank each class separately and take the mean, as mean AP does, "
        "instead of ranking all classes together as published",
    )
    self_balance: bool = Field(
        True, description="alrp, rank_sort: scale the box loss to the classification's at every step"
    )
    global_ranking: bool = Field(
        True, description="with several processes: rank and count over all of them together"
    )
    negatives_per_positive: Positive = Field(3.0, description="ce_ohem: hard negatives for each positive")
    focal_alpha: Fraction = Field(0.25, description="focal: weight of the positives")
    focal_gamma: NonNegative = Field(2.0, description="focal: focusing exponent, 0 or at least 1")
    box: Literal["smooth_l1", "giou"] = Field("smooth_l1", description="box regression loss")
    box_weight: NonNegative = Field(1.0, description="weight of the box loss in the sum")
    smooth_l1_beta: Positive = Field(1.0, description="where smooth L1 changes from quadratic to linear")

    @property
    def ranks(self) -> bool:
        """Whether the loss is a ranking loss, which leaves the scale of scores undetermined."""
        return self.name in ("ap", "alrp", "rank_sort")

    @field_validator("delta")
    @classmethod
    def _not_tiny(cls, value: float | None) -> float | None:
        if value is not None and (0 < value < 1e-6 or value > 1e6):
            raise ValueError("must be 0 (the plain step) or from 1e-6 to 1e6")
        return value

    @model_validator(mode="after")
    def _alrp_measures_boxes_by_giou(self) -> "LossConfig":
        if self.name == "alrp" and self.box != "giou":
            raise ValueError("box: alrp needs the GIoU loss for boxes; set loss.box=giou")
        return self
