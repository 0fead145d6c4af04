"""Losses whose gradient is defined by their authors instead of derived from their value."""

from typing import Any

import torch
from torch import Tensor


def error_driven(inputs: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar equal to `value` whose backward pass gives `inputs` the `gradient` (of their shape).

    The gradient may have a wider dtype than the inputs; it is rounded after the incoming factor (a loss
    weight, a loss scale) has been applied. On a CPU with a factor of 1, autograd.grad returns this very
    tensor: if you call it twice, copy the result before changing it in place. There is no second
    derivative: create_graph=True is refused.
    """
    return _ErrorDriven.apply(inputs, value, gradient)


def two_error_driven(
    inputs: Tensor, values: tuple[Tensor, Tensor], gradient: Tensor, places: Tensor, of_each: Tensor
) -> tuple[Tensor, Tensor]:
    """Two scalars with gradients of their own, where the second's is 0 except at a few indices.

    Args:
        inputs: any shape.
        values: of the two scalars.
        gradient: shape of the inputs, of the sum of the two; outside `places` it is the first one's alone.
        places: int64 [p], indices into the flattened inputs.
        of_each: [2, p], the gradient of each of the two at `places`.
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
        # Saves a pass and its memory. On other devices reading the factor would synchronise.
        if not (factor.device.type == "cpu" and factor.item() == 1):
            gradient = gradient * factor  # a 0-dim tensor: does not change the dtype and is not rounded to it
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
    """Refuse create_graph=True: the gradient would be a constant, silently missing in gradient penalties."""
    if torch.is_grad_enabled():  # in a backward pass this means create_graph=True
        raise RuntimeError(
            "create_graph=True: this loss has no second derivative: its gradient is computed together with "
            "its value"
        )
