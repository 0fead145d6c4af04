"""The two heads of RetinaNet: small convolutional towers shared by all pyramid levels."""

import math

import torch
from torch import Tensor, nn

from detector.backbone import make_norm


class Head(nn.Module):
    """A tower of 3x3 convolutions and an output convolution.

    Args:
        in_channels: of the pyramid.
        width, depth: channels and number of the tower's convolutions.
        anchors: per location.
        outputs: per anchor: the classes, or 4 deltas.
        norm: "none" (as published) or "group"; group norm helps training from scratch.
        prior: where given, the output starts at the logit of this probability.
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
        if norm == "group":  # behind a norm layer a small start only slows the first steps
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
        # Free of charge under channels_last, where this is the order in memory already.
        return self.output(self.tower(feature)).permute(0, 2, 3, 1)
