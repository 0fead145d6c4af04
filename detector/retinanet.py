"""RetinaNet (Lin et al., ICCV 2017): ResNet, feature pyramid and two heads."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detector.anchors import AnchorGenerator
from detector.backbone import FeaturePyramid, ResNet
from detector.heads import Head

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class HeadOutputs(NamedTuple):
    """The network's outputs for every anchor."""

    logits: Tensor  # [B, N, C]
    deltas: Tensor  # [B, N, 4]
    anchors: Tensor  # float32 [N, 4], xyxy pixels of the padded batch
    level_sizes: tuple[int, ...]  # anchors per pyramid level; sums to N

    def deltas_of(self, image: Tensor, anchor: Tensor) -> Tensor:
        """The deltas of P anchors, given by int64 indices [P]: [P, 4]."""
        return self.deltas[image, anchor]


@dataclass(frozen=True)
class OutputsInTraining:
    """`HeadOutputs` whose deltas are computed on demand: a loss needs few of them."""

    logits: Tensor
    anchors: Tensor
    level_sizes: tuple[int, ...]
    features: list[Tensor]  # pyramid levels
    box_head: Head

    @property
    def deltas(self) -> Tensor:
        return self.box_head(self.features)

    def deltas_of(self, image: Tensor, anchor: Tensor) -> Tensor:
        return self.box_head.of_anchors(self.features, image, anchor)


Outputs = HeadOutputs | OutputsInTraining


class RetinaNet(nn.Module):
    """Images -> logits and box deltas for every anchor.

    Args:
        backbone, pyramid: produce P3 to P7.
        class_head, box_head: produce [B, N, C] and [B, N, 4].
        anchor_generator: must have as many anchors per location as the heads.
    """

    def __init__(
        self,
        backbone: ResNet,
        pyramid: FeaturePyramid,
        class_head: Head,
        box_head: Head,
        anchor_generator: AnchorGenerator,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pyramid = pyramid
        self.class_head = class_head
        self.box_head = box_head
        self.anchor_generator = anchor_generator
        # (x / 255 - mean) / std in one multiplication and one addition
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor, boxes_later: bool = False) -> Outputs:
        """images uint8 [B, 3, H, W] RGB, padded; sizes int64 [B, 2], height and width without padding.

        boxes_later: compute the deltas only on demand (under the same autocast, or without).
        """
        return self.look(self.normalise(images, sizes), boxes_later)

    def look(self, x: Tensor, boxes_later: bool = False) -> Outputs:
        """As `forward`, for images [B, 3, H, W] from `normalise`."""
        features = self.pyramid(self.backbone(x))
        grids = [(f.shape[-2], f.shape[-1]) for f in features]
        anchors = self.anchor_generator((x.shape[-2], x.shape[-1]), grids, x.device)
        per_location = self.anchor_generator.per_location
        level_sizes = tuple(h * w * per_location for h, w in grids)
        logits = self.class_head(features)
        if boxes_later:
            return OutputsInTraining(logits, anchors, level_sizes, features, self.box_head)
        return HeadOutputs(logits, self.box_head(features), anchors, level_sizes)

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """uint8 -> float, normalised by ImageNet's mean and standard deviation; padding becomes 0, the mean.

        Raises:
            TypeError: not uint8; images already in [0, 1] would come out as a single colour.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8 [B, 3, H, W] in RGB, got {images.dtype}")
        # In the layout of the stem's weights, or the first convolution would convert it. In place from here
        # on: allocating memory for each step of the arithmetic takes longer than the arithmetic.
        stem = next(self.backbone.parameters())
        last = stem.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        x = images.to(self.scale.dtype, memory_format=layout, copy=True)
        height, width = x.shape[-2:]
        if last:  # multiply whole rows: broadcasting over the 3 channels of a pixel takes twice as long
            pixels = x.permute(0, 2, 3, 1).view(len(x), height, width * 3)
            pixels.mul_(self.scale.flatten().repeat(width)).add_(self.shift.flatten().repeat(width))
        else:
            x.mul_(self.scale).add_(self.shift)
        # In x's dtype: multiplying by booleans would first convert a mask of all pixels.
        rows = (torch.arange(height, device=x.device) < sizes[:, :1]).to(x.dtype)  # [B, H]
        columns = (torch.arange(width, device=x.device) < sizes[:, 1:]).to(x.dtype)  # [B, W]
        return x.mul_(rows[:, None, :, None] * columns[:, None, None, :])
