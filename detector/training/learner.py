"""The model and what updates it: optimizer, loss scaler, moving average."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detector.checkpoint import load_weights
from detector.criterion import Losses
from detector.retinanet import RetinaNet
from detector.training.ema import WeightAverage
from detector.training.nonfinite import RunningStatistics
from detector.training.optimizer import fill_momentum
from errors import InputError


class Learner:
    """Everything that a step changes, and that a checkpoint therefore restores.

    Args:
        model: the trained model.
        optimizer: one of torch's fused ones, over the trained parameters.
        scaler: loss scaler for fp16, otherwise disabled.
        clip_norm: maximum norm of the gradient, or None.
        ema_decay: decay of the moving average; 0 for none.
    """

    def __init__(
        self,
        model: RetinaNet,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        clip_norm: float | None,
        ema_decay: float,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.clip_norm = clip_norm
        self.average = WeightAverage(model, ema_decay) if ema_decay else None
        self._statistics = RunningStatistics(model)

    @property
    def evaluated(self) -> RetinaNet:
        """The model to evaluate: the average if there is one."""
        return self.average.model if self.average else self.model

    def begin(self, lr: float) -> None:
        """Prepare the forward pass of a step."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        # Freed as late as possible, so that the next gradients reuse warm memory.
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.keep()

    def update(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Clip, step, average; the weights stay unchanged if loss or gradient is not finite.

        Returns:
            The norm of the gradient before clipping, and whether the step was not finite, bool []. Both stay
                on the device: reading them would wait for it.
        """
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        left_out = ~torch.isfinite(norm)
        if self.scaler.is_enabled():
            # fp16 overflows occasionally; the scaler then skips the step and lowers its factor.
            nonfinite = ~torch.isfinite(losses.total) | self._scaled_away(left_out)
            if dist.is_initialized():  # the loss may be local to each process
                anywhere = nonfinite.float()
                dist.all_reduce(anywhere, dist.ReduceOp.MAX)
                nonfinite = anywhere > 0
            # A mere overflow is no fault, but its batch did not change the weights either.
            left_out = left_out | nonfinite
        else:
            nonfinite = left_out
            # Makes a fused optimizer skip the step, decided on the device.
            self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._statistics.restore_where(left_out)
        if self.average:
            self.average.update(self.model)
        return norm, nonfinite

    def _lay_out_state(self) -> None:
        """Give the optimizer's state the memory layout of the weights.

        It may come from a run with another memory format (train.channels_last), and fused optimizers ignore
        strides.
        """
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _scaled_away(self, left_out: Tensor) -> Tensor:
        """Whether the gradient is not finite although the scaler's factor is below 1 already."""
        scale = self.scaler._scale
        return left_out & (scale < 1) if scale is not None else torch.zeros_like(left_out)

    def state(self) -> dict[str, Any]:
        """All state except the weights that are evaluated."""
        return {
            "model": self.model.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], evaluated: dict[str, Tensor], source: str) -> None:
        """Restore what `state` returned; the optimizer keeps its current settings.

        Args:
            evaluated: the weights of the evaluated model.
            source: name of the checkpoint in messages.

        Raises:
            InputError: the state is of another model or optimizer.
        """
        if (state["model"] is not None) != (self.average is not None):
            raise InputError(f"{source}: train.ema_decay cannot be switched on or off when resuming")
        load_weights(self.model, state["model"] or evaluated, source)
        if self.average:
            load_weights(self.average.model, evaluated, source)
            self.average.updates = state["average_updates"]
        settings = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise InputError(f"{source}: the optimizer cannot be restored ({error})") from None
        for group, wanted in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(wanted)
        fill_momentum(self.optimizer)
        self._lay_out_state()
        if state["scaler"]:  # empty if the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
