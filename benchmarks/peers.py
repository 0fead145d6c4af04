"""Other implementations of the AP-loss for comparison: the published loop, and the bucketed approximation."""

import time
from typing import Any

import torch
from torch import Tensor

from detector.losses.ranking import ascending


class TooSlow(Exception):
    """The loop has exceeded its time limit."""


class LoopAPLoss(torch.autograd.Function):
    """AP-loss as published: loops over the positives, comparing each with all relevant negatives.

    Algorithm 1 of Chen et al. (CVPR 2019) in its vectorised form, with interpolated precision and the
    published implementation's shortcut: negatives further than delta below every positive are dropped.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, delta: float, give_up_at: float) -> Tensor:
        positives = (targets == 1).nonzero().squeeze(1)
        f, order = logits[positives].sort()
        relevant = ((targets == 0) & (logits >= f[0] - delta)).nonzero().squeeze(1)
        n = logits[relevant]
        pulls = torch.zeros_like(n)
        errors = torch.empty_like(f)
        best = f.new_zeros(())
        for i, threshold in enumerate(f):
            if time.perf_counter() > give_up_at:
                raise TooSlow
            a = 0.5 + _soft_step(f - threshold, delta).sum()  # positives above, itself as 1
            pull = _soft_step(n - threshold, delta)
            b = pull.sum()
            precision = a / (a + b)
            share = 1 / (a + b)
            if best <= precision:  # synchronises on a GPU, as the published code does
                best = precision
            else:
                share = share * (1 - best) / (1 - precision)
            pulls += pull.mul_(share)
            errors[i] = 1 - best
        gradient = torch.zeros_like(logits)
        gradient[relevant] = pulls / len(f)
        gradient[positives[order]] = -errors / len(f)
        ctx.save_for_backward(gradient)
        return errors.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None, None


def _soft_step(u: Tensor, delta: float) -> Tensor:
    return u.div_(2 * delta).add_(0.5).clamp_(0, 1)


class BucketedAPLoss(torch.autograd.Function):
    """The bucketed AP-loss (Yavuz et al., ECCV 2024), without interpolation as there: O(N log N + P^2).

    The relevant logits are sorted, as fast as we can. The negatives between two neighbouring positives form
    one bucket, placed at their mean logit and weighted by their number; a P x B matrix relates positives and
    buckets. All members of a bucket get its gradient. The smaller delta (> 0), the closer the result is to
    the AP-loss.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, delta: float) -> Tensor:
        positives = (targets == 1).nonzero().squeeze(1)
        f = logits[positives]
        relevant = ((targets == 0) & (logits >= f.min() - delta)).nonzero().squeeze(1)
        n, order = ascending(logits[relevant])
        ends = torch.searchsorted(n, f.sort().values, right=True)  # [P], ends of the buckets below positives
        size = torch.cat((ends, ends.new_tensor([len(n)]))).diff(prepend=ends.new_zeros(1))
        size = size[size > 0]
        bucket = torch.arange(len(size), device=n.device).repeat_interleave(size, output_size=len(n))
        mean = n.new_zeros(len(size)).index_add_(0, bucket, n) / size
        a = 0.5 + _soft_step(f - f[:, None], delta).sum(1)
        relations = _soft_step(mean - f[:, None], delta)  # [P, B]
        b = relations @ size.to(n.dtype)
        weights = torch.where(b > 0, 1 / (a + b), 0) / len(f)
        gradient = torch.zeros_like(logits)
        gradient[relevant[order]] = (weights @ relations)[bucket]
        error = b / (a + b)
        gradient[positives] = -error / len(f)
        ctx.save_for_backward(gradient)
        return error.mean()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None
