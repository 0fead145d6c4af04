"""Builds the network from the configuration, and places it in memory."""

from functools import partial

import torch

from detector.anchors import AnchorGenerator
from detector.backbone import FeaturePyramid, ResNet
from detector.builders.device import build_amp
from detector.config import ModelConfig, TrainConfig
from detector.heads import Head
from detector.retinanet import RetinaNet


def build_model(config: ModelConfig, classes: int, pretrained: bool) -> RetinaNet:
    """A RetinaNet with fresh weights, or ImageNet weights in the backbone if `pretrained`.

    Raises:
        InputError: the ImageNet weights cannot be downloaded.
    """
    backbone = ResNet(config.backbone, config.norm, pretrained, config.frozen_stages, config.base_channels)
    anchors = AnchorGenerator(config.anchors.sizes, config.anchors.ratios)
    head = partial(
        Head,
        in_channels=config.pyramid_channels,
        width=config.head_width,
        depth=config.head_depth,
        anchors=anchors.per_location,
        norm=config.head_norm,
    )
    return RetinaNet(
        backbone,
        FeaturePyramid(backbone.channels, config.pyramid_channels, config.p6_from),
        head(outputs=classes, prior=config.prior),
        head(outputs=4),
        anchors,
    )


def place(model: RetinaNet, config: TrainConfig, device: torch.device) -> RetinaNet:
    """Move a model to its device and memory format; features follow the layout of the weights."""
    return model.to(device).to(memory_format=memory_format(config, device))


def memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """The memory layout of weights and features."""
    last = config.channels_last
    if last == "auto":
        last = device.type != "cpu" or build_amp(config, device) is not None
    return torch.channels_last if last else torch.contiguous_format
