"""Whether backbone, losses and weights go together, tried on one small picture before a training.

What the configuration can say goes together; what was added to the code (docs/extending.md) may not, and
would show late, in PyTorch's words, or not at all.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detector.criterion import Criterion, GroundTruth
from detector.retinanet import RetinaNet
from errors import InputError

_SIDE = 64  # pixels
_STRIDES = (8, 16, 32)


def check_wiring(model: RetinaNet, criterion: Criterion) -> None:
    """Forward and backward once; the model is as it was before.

    Args:
        criterion: of this process alone.

    Raises:
        InputError: the backbone does not give what it declares, a part of the loss is no scalar, or no
            gradient comes to weights that are trained.
    """
    device = model.scale.device
    training = model.training
    model.eval()  # the statistics of norms are not to follow a blank picture
    watch = model.backbone.register_forward_hook(_check_features)
    try:
        images = torch.zeros(1, 3, _SIDE, _SIDE, dtype=torch.uint8, device=device)
        gt = GroundTruth(
            boxes=torch.tensor([[[8.0, 8.0, _SIDE - 8, _SIDE - 8]]], device=device),
            labels=torch.zeros(1, 1, dtype=torch.int64, device=device),
            valid=torch.ones(1, 1, dtype=torch.bool, device=device),
            ignore=torch.zeros(1, 1, dtype=torch.bool, device=device),
        )
        outputs = model(images, torch.full((1, 2), _SIDE, device=device), boxes_later=True)
        losses = criterion([criterion.match(outputs, gt)])
        _check_parts(losses.parts)
        if losses.total.requires_grad:
            losses.total.backward()
        _check_gradients(model)
    finally:
        watch.remove()
        model.zero_grad(set_to_none=True)
        model.train(training)


def _check_features(backbone: nn.Module, given: tuple[Tensor], features: Sequence[Tensor]) -> None:
    height, width = given[0].shape[-2:]
    wanted = [
        [1, channels, -(-height // stride), -(-width // stride)]
        for channels, stride in zip(backbone.channels, _STRIDES, strict=True)  # type: ignore[arg-type]
    ]
    found = [list(map_.shape) for map_ in features]
    if found != wanted:
        raise InputError(
            f"the backbone {type(backbone).__name__} gives maps of {found} for images of {width} x {height}; "
            f"with channels={backbone.channels} and strides of 8, 16 and 32 they should be {wanted}"
        )


def _check_parts(parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.dim() > 0:
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"the part '{name}' of the loss must be a tensor of one number, [], got {got}")


def _check_gradients(model: RetinaNet) -> None:
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    without = [name for name, weight in trained if weight.grad is None]
    if without:
        raise InputError(
            f"no gradient of the loss comes to {len(without)} of {len(trained)} trained weights, the first "
            f"{without[0]}: leave out of the network what it does not use, let the loss depend on it "
            "(no .detach()), or freeze it (requires_grad_(False))"
        )
