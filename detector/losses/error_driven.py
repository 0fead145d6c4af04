"""Losses whose gradient is defined by their authors instead of derived from their value."""

from typing import Any

import torch
from torch import Tensor


def error_driven(inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that is `value` and hands `gradient` [as inputs] to `inputs` in the backward pass.

    The gradient may be of a wider dtype than the inputs; it is rounded after the factor that comes
    from above (a loss weight, a loss scale) has been applied. On a CPU, and with a factor of 1, it is this
    very tensor that autograd.grad returns: copy it before changing it in place if you ask for it twice. It
    has no gradient itself: create_graph=True, which asks for one, is refused.
    """
    return _ErrorDriven.apply(inputs, value, gradient)


def two_error_driven(
    inputs: Tensor, values: tuple[Tensor, Tensor], gradient: Tensor, places: Tensor, of_each: Tensor
) -> tuple[Tensor, Tensor]:
    """Two scalars whose gradients differ from each other in a few places only; each can be had by itself.

    Args:
        inputs: any shape.
        values: of the scalars.
        gradient: [as inputs], of the sum of the two. But for the places it is the first one's.
        places: int64 [p], in the flattened inputs.
        of_each: [2, p], what each of the two has there.
    """
    first, second = _TwoErrorDriven.apply(inputs, *values, gradient, places, of_each)
    return first, second


class _ErrorDriven(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = inputs.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        _refuse_a_graph()
        (gradient,) = ctx.saved_tensors
        # Saves a pass and its memory. On other devices a look at the factor would wait for the device.
        if not (factor.device.type == "cpu" and factor.item() == 1):
            gradient = gradient * factor  # a scalar, which does not widen it and is not rounded to it
        return gradient.to(ctx.dtype), None, None


class _TwoErrorDriven(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        first: Tensor,
        second: Tensor,
        gradient: Tensor,
        places: Tensor,
        of_each: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(gradient, places, of_each)
        ctx.dtype = inputs.dtype
        return first.clone(), second.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        _refuse_a_graph()
        gradient, places, of_each = ctx.saved_tensors
        factors = torch.stack(grad_outputs)
        if not (factors.device.type == "cpu" and factors.tolist() == [1, 1]):  # as above
            gradient = gradient * factors[0]
            there = factors.to(of_each.dtype) @ of_each
            gradient.view(-1)[places] = there.to(gradient.dtype)
        return gradient.to(ctx.dtype), None, None, None, None, None


def _refuse_a_graph() -> None:
    """The gradient would be a constant in it, and a part of a gradient penalty missing, without a word."""
    if torch.is_grad_enabled():  # while gradients are computed, that is create_graph=True
        raise RuntimeError(
            "create_graph=True: this loss has no second derivative: its gradient is computed together with "
            "its value"
        )
