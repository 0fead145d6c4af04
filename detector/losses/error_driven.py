"""Losses whose gradient is defined by their authors instead of derived from their value."""

from typing import Any

import torch
from torch import Tensor


def error_driven(inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that is `value` and hands `gradient` [as inputs] to `inputs` in the backward pass.

    The gradient may be of a wider dtype than the inputs; it is rounded after the factor that comes
    from above (a loss weight, a loss scale) has been applied.
    """
    return _ErrorDriven.apply(inputs, value, gradient)


class _ErrorDriven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = inputs.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        factor = grad_outputs[0]
        # Saves a pass and its memory. On other devices a look at the factor would wait for the device.
        if not (factor.device.type == "cpu" and float(factor) == 1):
            gradient = gradient * factor.to(gradient.dtype)
        return gradient.to(ctx.dtype), None, None
