"""Batch norm over the batches of all processes, for devices on which torch has none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detector.folding import is_trained, unfold_norms


def synchronise_norms(model: nn.Module, device: torch.device) -> None:
    """Make every batch norm of a model compute its statistics over all processes.

    Layers whose weights are not trained use no batch statistics and stay unchanged. The state dict keeps its
    names and shapes.
    """
    unfold_norms(model, trained_only=True)
    kind = nn.SyncBatchNorm if device.type == "cuda" else SyncBatchNorm
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            if not is_trained(child):
                continue
            norm = kind(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            for own, other in zip(norm.parameters(), child.parameters(), strict=True):
                own.requires_grad_(other.requires_grad)
            setattr(model, name, norm)
        else:
            synchronise_norms(child, device)


class SyncBatchNorm(nn.BatchNorm2d):
    """Like torch's layer of this name, which is for GPUs only, built from plain operations and reductions.

    In training, x [B, C, H, W] is normalised with mean and variance of each channel over the batches of all
    processes, whose sizes may differ; the running variance is the unbiased one, as in torch.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = _SumOverProcesses.apply(values.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(values.sum((0, 2, 3))) / count
        # Deviations from the mean: the difference of large squares would lose precision.
        deviations = values - mean[:, None, None]
        var = _SumOverProcesses.apply(deviations.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), (var * count / (count - 1).clamp_min(1)).detach())
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias[:, None, None], deviations, scale[:, None, None]).to(x.dtype)

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient
