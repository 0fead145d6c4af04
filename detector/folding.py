"""Folds a norm into the convolution before it, where the norm does not depend on the batch.

Frozen batch norm, and any batch norm in evaluation, is y = a x + b with fixed a and b per channel. With a
preceding convolution of weights W it equals one convolution with weights a W and bias b: the features are
written once instead of three times, and the backward pass has one pass over them less.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch norm; does nothing when it is folded into a convolution."""

    folded = False
    _known: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, [C] each.

        Recomputed only if a buffer has been replaced or written to: five operations for each of the 53
        norms of a ResNet-50 would be a quarter of those that a GPU waits for in a training step.
        """
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling():  # first, since it cannot trace the other conditions
            return _line(*buffers, self.eps)
        # Inference tensors have no version counter, and training could not backpropagate through them.
        if torch.is_inference_mode_enabled() or any(buffer.is_inference() for buffer in buffers):
            return _line(*buffers, self.eps)
        if self._known is not None:
            seen, line = self._known
            pairs = zip(buffers, seen, strict=True)
            if all(now is then and now._version == version for now, (then, version) in pairs):
                return line
        line = _line(*buffers, self.eps)
        self._known = [(buffer, buffer._version) for buffer in buffers], line
        return line

    def __getstate__(self) -> dict[str, Any]:
        # The version counters of a copy's buffers start from 0.
        return {**super().__getstate__(), "_known": None}

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded else super().forward(x)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm; in evaluation it does nothing when it is folded into a convolution."""

    folded = False

    def scale_and_shift(self) -> tuple[Tensor, Tensor] | None:
        """Scale and shift, [C] each; None in training, when they depend on the batch."""
        if self.training:
            return None
        assert self.running_mean is not None and self.running_var is not None
        return _line(self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.folded and not self.training else super().forward(x)


class FoldingConv2d(nn.Conv2d):
    """A convolution that applies the norm after it as well, where that is possible."""

    def __init__(self, conv: nn.Conv2d, norm: FrozenNorm | BatchNorm) -> None:
        super().__init__(**_geometry(conv), bias=False, device="meta")
        self.weight = conv.weight
        self._norm = [norm]  # in a list, or it would be a submodule and appear twice in the state dict

    def forward(self, x: Tensor) -> Tensor:
        line = self._norm[0].scale_and_shift() if self._norm else None
        if line is None:
            return super().forward(x)
        scale, shift = line
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """A plain convolution that does the same in evaluation, without the norm.

        Raises:
            ValueError: the norm is in training mode and depends on the batch.
        """
        line = self._norm[0].scale_and_shift() if self._norm else None
        if line is None and self._norm:
            raise ValueError("a batch norm in training has no fixed scale and shift: call eval() first")
        plain = nn.Conv2d(**_geometry(self), bias=line is not None, device="meta")
        if line is None:
            plain.weight = self.weight
        else:
            scale, shift = line
            plain.weight = nn.Parameter(self.weight * scale[:, None, None, None], requires_grad=False)
            plain.bias = nn.Parameter(shift, requires_grad=False)
        return plain

    @property
    def norm_is_trained(self) -> bool:
        """Whether there is a norm whose weights are trained."""
        return any(is_trained(norm) for norm in self._norm)

    def unfold(self) -> None:
        """Become a plain convolution again."""
        for norm in self._norm:
            norm.folded = False
        self._norm = []


def is_trained(norm: nn.Module) -> bool:
    """Whether any weight of a norm is trained; frozen batch norm has none."""
    return any(parameter.requires_grad for parameter in norm.parameters())


def fold_norms(network: nn.Module) -> None:
    """Fold every norm directly after a convolution without bias; the state dict keeps its names."""
    for module in list(network.modules()):
        for (name, conv), (_, norm) in pairwise(list(module.named_children())):
            if not isinstance(norm, FrozenNorm | BatchNorm):
                continue
            if isinstance(conv, nn.Conv2d) and conv.bias is None:
                setattr(module, name, FoldingConv2d(conv, norm))
                norm.folded = True


def unfold_norms(network: nn.Module, trained_only: bool = False) -> None:
    """Undo `fold_norms` for norms that will be replaced; trained_only: only those with trained weights."""
    for module in network.modules():
        if isinstance(module, FoldingConv2d) and (module.norm_is_trained or not trained_only):
            module.unfold()


def running_statistics(network: nn.Module) -> list[Tensor]:
    """The buffers of all batch norms, except frozen ones: those that a training forward pass changes."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]


def plain_convolutions(network: nn.Module) -> None:
    """Replace folded norms for good, as they are in evaluation, by plain convolutions with a bias."""
    for module in list(network.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, FoldingConv2d):
                setattr(module, name, conv.plain())


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, name) for name in names}


def _line(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = weight * torch.rsqrt(var + eps)
    return scale, bias - mean * scale
