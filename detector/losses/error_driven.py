"""Losses whose gradient is defined by their authors instead of derived from their value."""

from typing import Any

import torch
from torch import Tensor


def error_driven(inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that is `value` and hands `gradient` [as inputs] to `inputs` in the backward pass.

    The gradient may be of a wider dtype than the inputs; it is rounded after the factor that comes
    from above (a loss weight, a loss scale) has been applied. On a CPU, and with a factor of 1, it is this
    very tensor that autograd.grad returns: copy it before changing it in place if you ask for it twice. It
    has no gradient itself: a second derivative is refused.
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
        ctx.inputs = inputs
        return value.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _NotDerived.apply(gradient, ctx.inputs, factor)
        # Saves a pass and its memory. On other devices a look at the factor would wait for the device.
        if not (factor.device.type == "cpu" and factor.item() == 1):
            gradient = gradient * factor  # a scalar, which does not widen it and is not rounded to it
        return gradient.to(ctx.inputs.dtype), None, None


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
        ctx.inputs = inputs
        return first.clone(), second.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        gradient, places, of_each = ctx.saved_tensors
        factors = torch.stack(grad_outputs)
        if torch.is_grad_enabled():  # create_graph=True
            gradient = _NotDerived.apply(gradient, ctx.inputs, factors)
        if not (factors.device.type == "cpu" and factors.tolist() == [1, 1]):  # as above
            gradient = gradient * factors[0]
            there = factors.to(of_each.dtype) @ of_each
            gradient.view(-1)[places] = there.to(gradient.dtype)
        return gradient.to(ctx.inputs.dtype), None, None, None, None, None


class _NotDerived(torch.autograd.Function):
    """The gradient, where one of it may be asked for. Without this it would be taken for a constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *given: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError(
            "the gradient of this loss is computed with its value and has none itself: it has no second "
            "derivative (create_graph=True, gradient penalties)"
        )
