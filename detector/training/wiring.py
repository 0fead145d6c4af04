"""Whether backbone, losses and weights go together, tried on one small picture before a training.

What the configuration can say goes together; what was added to the code (docs/extending.md) may not, and
would show late, in PyTorch's words, or not at all.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from detector.criterion import Criterion, GroundTruth
from detector.losses import NonFiniteLogits
from detector.retinanet import RetinaNet
from errors import InputError

log = logging.getLogger(__name__)

_SIDE = 64  # pixels
_STRIDES = (8, 16, 32)


def check_wiring(model: RetinaNet, criterion: Criterion, processes: int = 1) -> None:
    """Forward and backward once; the model is as it was before.

    Args:
        criterion: of this process alone.
        processes: that train together, and wait for the gradient of every weight.

    Raises:
        InputError: the backbone does not give what it declares, a part of the loss is no scalar, or no
            gradient comes to a whole head; or, with several processes, to any weight that is trained.
    """
    device = model.scale.device
    training = model.training
    watch = model.backbone.register_forward_hook(_check_features)
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, _NormBase):  # one small picture says nothing of a batch
                module.eval()
        # Not blank: what has no contrast may be divided by it.
        pixels = torch.randint(0, 256, (1, 3, _SIDE, _SIDE), generator=torch.Generator().manual_seed(0))
        gt = GroundTruth(
            boxes=torch.tensor([[[8.0, 8.0, _SIDE - 8, _SIDE - 8]]], device=device),
            labels=torch.zeros(1, 1, dtype=torch.int64, device=device),
            valid=torch.ones(1, 1, dtype=torch.bool, device=device),
            ignore=torch.zeros(1, 1, dtype=torch.bool, device=device),
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            images = pixels.to(device, torch.uint8)
            outputs = model(images, torch.full((1, 2), _SIDE, device=device), boxes_later=True)
            losses = criterion([criterion.match(outputs, gt)])
        _check_parts(losses.parts)
        if losses.total.requires_grad:
            losses.total.backward()
        _check_gradients(model, processes)
    except NonFiniteLogits:  # of weights that are not finite, which the first step tells, with its images
        return
    finally:
        watch.remove()
        model.zero_grad(set_to_none=True)
        model.train(training)


def _check_features(backbone: nn.Module, given: tuple[Tensor], features: Any) -> None:
    name, (height, width) = type(backbone).__name__, given[0].shape[-2:]
    channels = list(backbone.channels)  # type: ignore[arg-type]
    if len(channels) != len(_STRIDES):
        raise InputError(f"the backbone {name} declares channels={channels}; must be those of C3, C4 and C5")
    if not isinstance(features, list | tuple) or not all(isinstance(one, Tensor) for one in features):
        raise InputError(
            f"the backbone {name} returns {type(features).__name__}; must return a list of the maps C3, C4 "
            "and C5"
        )
    wanted = [
        [1, count, -(-height // stride), -(-width // stride)]
        for count, stride in zip(channels, _STRIDES, strict=True)
    ]
    found = [list(one.shape) for one in features]
    if found != wanted:
        raise InputError(
            f"the backbone {name} returns maps of {found} for images of {width} x {height}; with "
            f"channels={channels} and strides of 8, 16 and 32 they should be {wanted}"
        )


def _check_parts(parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        if not isinstance(part, Tensor) or part.dim() > 0:
            got = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise InputError(f"the part '{name}' of the loss must be a tensor of one number, [], got {got}")


def _check_gradients(model: RetinaNet, processes: int) -> None:
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    without = [name for name, weight in trained.items() if weight.grad is None]
    for head in ("class_head.", "box_head."):
        mine = {name for name in trained if name.startswith(head)}
        if mine and mine <= {*without}:
            raise InputError(
                f"no gradient of the loss reaches {head[:-1]}: a part of the loss must depend on it (no "
                ".detach())"
            )
    if without:
        message = (
            f"no gradient of the loss reaches {len(without)} of {len(trained)} trained weights, such as "
            f"{without[0]}: remove unused parts from the network, or freeze them (requires_grad_(False))"
        )
        if processes > 1:
            raise InputError(f"{message}; several processes would wait for these gradients forever")
        log.warning("%s; these weights learn nothing, and several processes cannot train with them", message)
