"""Checks before a training, on one small picture, that backbone, losses and weights fit together.

What the configuration offers does; code that was added (docs/extending.md) may not, which would show late,
with an obscure message of PyTorch, or not at all.
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
    """One forward and backward pass; the model is left unchanged.

    Args:
        criterion: the losses, for this process alone.
        processes: number of processes, which wait for the gradient of every weight.

    Raises:
        InputError: the backbone does not return what it declares, a part of the loss is not a scalar, or a
            whole head receives no gradient; or, with several processes, any trained weight receives none.
    """
    device = model.scale.device
    training = model.training
    watch = model.backbone.register_forward_hook(_check_features)
    try:
        model.train()
        for module in model.modules():
            if isinstance(module, _NormBase):  # one small picture gives no useful batch statistics
                module.eval()
        # Not blank: code may divide by the contrast.
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
    except NonFiniteLogits:  # weights are not finite: the first step reports it, with its images
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
