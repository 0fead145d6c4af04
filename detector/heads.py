"""RetinaNet's two heads: small convolutional towers shared by all pyramid levels."""

import math

import torch
from torch import Tensor, nn

from detector.backbone import make_norm
from detector.few_locations import convolved_rows, numbered, surroundings

# From this fraction of all locations on, computing whole maps is faster.
_FEW = 0.4


class Head(nn.Module):
    """A tower of 3x3 convolutions and an output convolution.

    Args:
        in_channels: channels of the pyramid.
        width, depth: channels and number of the tower's convolutions.
        anchors: anchors per location.
        outputs: outputs per anchor: the number of classes, or 4 deltas.
        norm: "none" (as published) or "group"; group norm helps training from scratch.
        prior: if given, the output bias starts at the logit of this probability.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        depth: int,
        anchors: int,
        outputs: int,
        norm: str = "none",
        prior: float | None = None,
    ) -> None:
        super().__init__()
        tower: list[nn.Module] = []
        for layer in range(depth):
            tower.append(nn.Conv2d(in_channels if layer == 0 else width, width, 3, padding=1))
            if norm == "group":
                tower.append(make_norm("group", width))
            tower.append(nn.ReLU(inplace=True))
        self.tower = nn.Sequential(*tower)
        self.output = nn.Conv2d(width if depth else in_channels, anchors * outputs, 3, padding=1)
        self.outputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        if norm == "group":  # before a norm layer, small initial weights only slow the first steps
            for module in self.tower:
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if prior is not None and self.output.bias is not None:
            nn.init.constant_(self.output.bias, -math.log((1 - prior) / prior))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Pyramid levels -> [B, N, outputs], in the order of the anchors."""
        # [B, H * W * A, outputs]
        return torch.cat([self.maps(x).reshape(len(x), -1, self.outputs) for x in features], dim=1)

    def maps(self, feature: Tensor) -> Tensor:
        """One level [B, in_channels, H, W] -> [B, H, W, A * outputs]."""
        # Free under channels_last, where this already is the memory order.
        return self.output(self.tower(feature)).permute(0, 2, 3, 1)

    def of_anchors(self, features: list[Tensor], image: Tensor, anchor: Tensor) -> Tensor:
        """`self(features)[image, anchor]`, for int64 [P] each: [P, outputs].

        On a CPU, only the parts of the maps that these depend on are computed, if these parts are small.
        A GPU is faster with the whole maps, which also need no synchronisation.
        """
        convolutions = [module for module in self.tower if isinstance(module, nn.Conv2d)]
        plain = len(self.tower) == 2 * len(convolutions)  # no norm: it would depend on the whole map
        if plain and image.device.type == "cpu":
            convolutions.append(self.output)
            per_location = self.output.out_channels // self.outputs
            location = anchor // per_location
            wanted = _masks(features, image, location)
            masks = surroundings(wanted, len(convolutions))
            if _share(masks[1:]) < _FEW:
                rows = convolved_rows(features, convolutions, masks)
                row = torch.cat([level.flatten(1) for level in numbered(wanted)], dim=1)[image, location] - 1
                return rows.view(-1, per_location, self.outputs)[row, anchor % per_location]
        return self(features)[image, anchor]


def _masks(features: list[Tensor], image: Tensor, location: Tensor) -> list[Tensor]:
    """Masks bool [B, H, W] per level of the given locations, which are numbered through all levels."""
    levels = [x[:, 0] for x in features]
    marked = torch.zeros(len(levels[0]), sum(x[0].numel() for x in levels), dtype=torch.bool)
    marked[image, location] = True
    parts = marked.split([x[0].numel() for x in levels], dim=1)
    return [part.reshape(x.shape) for part, x in zip(parts, levels, strict=True)]


def _share(masks: list[list[Tensor]]) -> float:
    """The fraction of locations that is marked, over all masks."""
    every = [mask for levels in masks for mask in levels]
    return float(sum(mask.sum() for mask in every)) / sum(mask.numel() for mask in every)
