"""Optimizers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detector.config import ScheduleConfig


def build_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay_norm_and_bias: bool,
    slowed: nn.Module | None = None,
    slowed_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD or AdamW over the trained parameters; `lr_factor` of a group multiplies the learning rate.

    Args:
        decay_norm_and_bias: if False, one-dimensional parameters have no weight decay.
        slowed: a part of the model with another learning rate.
        slowed_lr_factor: its factor.
    """
    slow = set() if slowed is None or slowed_lr_factor == 1 else set(slowed.parameters())
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    # The order is fixed, as saved optimizer states depend on it.
    for decays, is_slow in ((True, False), (True, True), (False, False), (False, True)):
        factor = slowed_lr_factor if is_slow else 1.0
        decay = weight_decay if decays else 0.0
        groups[decays, is_slow] = {
            "params": [],
            "weight_decay": decay,
            "lr": lr * factor,
            "lr_factor": factor,
        }
    for p in model.parameters():
        if p.requires_grad:
            groups[decay_norm_and_bias or p.dim() > 1, p in slow]["params"].append(p)
    used = [group for group in groups.values() if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(used, lr=lr, fused=True)
    sgd = torch.optim.SGD(used, lr=lr, momentum=momentum, fused=True)
    fill_momentum(sgd)
    return sgd


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Initialise missing momentum buffers of SGD with zeros.

    The fused kernel allocates them uninitialised, and they stay so if it skips the first step.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def lr_factor(schedule: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The factor by which a step's learning rate is multiplied."""
    factor = warmup_factor(step, schedule.warmup_steps, schedule.warmup_factor)
    if schedule.name == "cosine":
        return factor * cosine_factor(step / total_steps, schedule.final_factor)
    return factor * multistep_factor(step / steps_per_epoch, schedule.milestones, schedule.gamma)


def warmup_factor(step: int, steps: int, first: float) -> float:
    """Linear warm-up: `first` at step 0, 1 from step `steps` on."""
    return 1.0 if step >= steps else first + (1 - first) * step / steps


def multistep_factor(epoch: float, milestones: Sequence[float], gamma: float) -> float:
    """gamma to the power of the milestones (in epochs) that have passed."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def cosine_factor(progress: float, final: float) -> float:
    """Half a cosine from 1 to `final` as progress goes from 0 to 1."""
    return final + (1 - final) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def epoch_scales(image_scales: Sequence[float], epochs: int) -> list[float]:
    """The image scale of each epoch: nearly equal shares of the epochs, the last one never the smallest."""
    count = len(image_scales)
    return [image_scales[-(-done * count // epochs) - 1] for done in range(1, epochs + 1)] or [1.0]
