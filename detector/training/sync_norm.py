"""Batch norm over the batches of all processes, also on devices for which torch has none."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def synchronise_norms(model: nn.Module) -> None:
    """Let every batch norm of a model take its statistics over all processes.

    The state dict keeps its names and shapes.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
            norm.load_state_dict(child.state_dict())
            for own, other in zip(norm.parameters(), child.parameters(), strict=True):
                own.requires_grad_(other.requires_grad)
            setattr(model, name, norm)
        else:
            synchronise_norms(child)


class SyncBatchNorm(nn.SyncBatchNorm):
    """nn.SyncBatchNorm, which is for GPUs only; elsewhere in terms of plain operations and reductions.

    In training, x [B, C, H, W] is normalised with mean and variance of each channel over the batches of
    all processes, whose sizes may differ; the running variance is the unbiased one, as torch keeps it.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cuda":
            return super().forward(x)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        assert (
            self.running_mean is not None
            and self.running_var is not None
            and self.num_batches_tracked is not None
        )
        values = x.float()
        count = _SumOverProcesses.apply(values.new_tensor(x.numel() / x.shape[1]))
        mean = _SumOverProcesses.apply(values.sum((0, 2, 3))) / count
        # From the mean, since the difference of large squares would keep few digits.
        deviations = values - mean[:, None, None]
        var = _SumOverProcesses.apply(deviations.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp_min(1)), momentum)
        scale = self.weight * torch.rsqrt(var + self.eps)
        return torch.addcmul(self.bias[:, None, None], deviations, scale[:, None, None]).to(x.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

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
