"""ResNet + feature pyramid: images -> five feature maps, P3 to P7, of strides 8 to 128 px."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detector.downloads import fetching, state_dict_of
from detector.folding import BatchNorm, FrozenNorm, fold_norms, running_statistics

Norm = Literal["batch", "frozen", "group"]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A norm layer for `channels` features; group norm with as many groups as divide them, at most 32.

    A group has at least two channels: one channel on a map of one location is a single value, which group
    norm would turn into 0.
    """
    if kind == "batch":
        return BatchNorm(channels)
    if kind == "frozen":
        return FrozenNorm(channels)
    groups = next((g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels >= 2 * g), 1)
    return nn.GroupNorm(groups, channels)


def load_imagenet(body: nn.Module, name: str) -> None:
    """Load ImageNet weights into one of torchvision's networks, whose norms may be of another kind.

    Raises:
        InputError: the weights cannot be fetched, or the cached file holds something else.
    """
    # V1: the weights used by published detectors.
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    scratch = "train from scratch with model.pretrained=false model.norm=batch model.frozen_stages=0"
    with fetching(weights, "model.pretrained", f"the ImageNet weights of {name}", scratch):
        # strict=False, as group norm has no running statistics to load.
        missing, _ = body.load_state_dict(state_dict_of(weights), strict=False)
        if missing:
            raise RuntimeError(f"it has no weights for '{missing[0]}'")


def make_body(name: str, norm: Norm, base_channels: int) -> torchvision.models.ResNet:
    """torchvision's network of that name with fresh weights and `base_channels`, not 64, in its first stage.

    All other stages scale by the same factor w, so a convolution in them has w^2 times the weights.
    """
    make: Callable[..., torchvision.models.ResNet] = getattr(torchvision.models, name)
    if base_channels == 64:
        return make(weights=None, norm_layer=partial(make_norm, norm))
    with torch.device("meta"):  # only the structure is needed
        body = make(weights=None)

    def scaled(channels: int) -> int:
        return channels * base_channels // 64

    for path, module in list(body.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            body.set_submodule(path, make_norm(norm, scaled(module.num_features)))
        elif isinstance(module, nn.Conv2d):
            if module is not body.conv1:
                module.in_channels = scaled(module.in_channels)
            module.out_channels = scaled(module.out_channels)
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            module.weight = nn.Parameter(torch.empty(shape))
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # as torchvision
    return body


class ResNet(nn.Module):
    """torchvision's ResNet without its classifier, giving C3, C4 and C5.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101.
        norm: batch (trained), frozen (fixed statistics: pretrained weights only) or group.
        pretrained: start from ImageNet weights, fetched by torchvision at first use.
        frozen_stages: 0 trains all; 1 freezes the stem, 2 also the first stage, and so on: their weights
            and the running statistics of their norms.
        base_channels: channels of the stem and the first stage, from which the others scale; 64 for
            pretrained weights.

    Raises:
        InputError: the weights cannot be fetched.
    """

    def __init__(
        self, name: str, norm: Norm, pretrained: bool, frozen_stages: int, base_channels: int = 64
    ) -> None:
        super().__init__()
        body = make_body(name, norm, base_channels)
        if pretrained:
            load_imagenet(body, name)
        del body.fc, body.avgpool
        self.checkpoint_activations = False  # keep only the stages' outputs for the backward pass
        fold_norms(body)
        self.body = body
        # The last convolution of a block is conv3 in bottlenecks (ResNet-50 and up), conv2 otherwise.
        ends = [stage[-1] for stage in (body.layer2, body.layer3, body.layer4)]
        self.channels = [getattr(end, "conv3", end.conv2).out_channels for end in ends]
        self._frozen_stages = frozen_stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "ResNet":
        """As for every module, but frozen stages stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        b = self.body
        stages = [(b.conv1, b.bn1), (b.layer1,), (b.layer2,), (b.layer3,), (b.layer4,)]
        return list(chain.from_iterable(stages[: self._frozen_stages]))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """As for every module; stage by stage with activation checkpointing, which does not compile."""
        if not self.checkpoint_activations:
            super().compile(*args, **kwargs)
            return
        for stage in (self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4):
            stage.compile(*args, **kwargs)

    def forward(self, x: Tensor) -> list[Tensor]:
        b = self.body
        # ReLU after the pooling gives the same result on a quarter of the values.
        x = self._stage(b.layer1, b.relu(b.maxpool(b.bn1(b.conv1(x)))))
        c3 = self._stage(b.layer2, x)
        c4 = self._stage(b.layer3, c3)
        return [c3, c4, self._stage(b.layer4, c4)]

    def _stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpoint_activations and self.training and torch.is_grad_enabled()):
            return stage(x)
        contexts = (contextlib.nullcontext(), _without_statistics(stage))
        return checkpoint(stage, x, use_reentrant=False, context_fn=lambda: contexts)


@contextlib.contextmanager
def _without_statistics(network: nn.Module) -> Iterator[None]:
    """Restore the running statistics of batch norms on exit: a recomputed forward pass must not count twice.

    Switching off their update instead would be another graph to torch.compile.
    """
    buffers = running_statistics(network)
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            # .data, since autograd has saved these buffers; no gradient depends on their values.
            buffer.data.copy_(value)


class FeaturePyramid(nn.Module):
    """FPN (Lin et al., CVPR 2017) with RetinaNet's P6 and P7.

    Args:
        in_channels: of C3, C4, C5.
        channels: of every level.
        p6_from: "c5" as in the paper, "p5" as in torchvision.
    """

    def __init__(self, in_channels: list[int], channels: int, p6_from: Literal["c5", "p5"]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.p6_from = p6_from
        p6_in = channels if p6_from == "p5" else in_channels[-1]
        self.p6 = nn.Conv2d(p6_in, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.never_cast = (self.p6, self.p7)  # see `forward`
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 -> P3 to P7, each [B, channels, H / stride, W / stride]."""
        inner = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for level in (1, 0):
            size = inner[level].shape[-2:]
            inner[level] = inner[level] + F.interpolate(inner[level + 1], size=size, mode="nearest")
        p3, p4, p5 = (conv(x) for conv, x in zip(self.output, inner, strict=True))
        # In float32 even under autocast, which costs nothing here: in bf16 the gradient of a strided
        # convolution over a map of a single cell is garbage on CPUs (oneDNN 3.13).
        with torch.autocast(p5.device.type, enabled=False):
            source = p5 if self.p6_from == "p5" else features[-1]
            p6 = self.p6(source.to(self.p6.weight.dtype))
            p7 = self.p7(torch.relu(p6))
        return [p3, p4, p5, p6, p7]
