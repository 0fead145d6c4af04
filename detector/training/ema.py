"""An exponential moving average of the weights, more stable in evaluation than the weights themselves."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """A copy of the model with averaged weights.

    The decay rises from 1/11 at the first update towards `decay`, so that the random initialisation is
    forgotten. Buffers (batch norm's statistics) are averaged like weights.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the model."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        average, current = _floats(self.model), _floats(model)
        torch._foreach_lerp_(average, current, 1 - decay)


def _floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
