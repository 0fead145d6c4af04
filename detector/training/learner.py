"""The model and what moves it: optimizer, loss scaler, moving average."""

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
    """What a step changes, and so what a checkpoint brings back.

    Args:
        model: what is trained.
        optimizer: over its trained parameters, one of torch's fused ones.
        scaler: of the loss, in fp16; switched off otherwise.
        clip_norm: largest norm of the gradient, or None.
        ema_decay: of the moving average; 0 for none.
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
        """The model that is worth evaluating: the average where there is one."""
        return self.average.model if self.average else self.model

    def begin(self, lr: float) -> None:
        """Make ready for the forward pass of a step."""
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        # Freed as late as possible: the next gradients then find their memory warm.
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics.keep()

    def update(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Clip, step, average; the weights stay where loss or gradient is not finite.

        Returns the norm of the gradient before clipping, and whether it was such a step, bool. Both
        are left on the device: to look at them would be to wait for it.
        """
        self.scaler.unscale_(self.optimizer)
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        left_out = ~torch.isfinite(norm)
        if self.scaler.is_enabled():
            # fp16 overflows now and then; the scaler then leaves the step out and lowers its factor.
            nonfinite = ~torch.isfinite(losses.total) | self._scaled_away(left_out)
            if dist.is_initialized():  # its loss may be each process's own
                anywhere = nonfinite.float()
                dist.all_reduce(anywhere, dist.ReduceOp.MAX)
                nonfinite = anywhere > 0
            # A gradient that only overflowed is no fault, but its batch had no part in the weights either.
            left_out = left_out | nonfinite
        else:
            nonfinite = left_out
            # How the fused optimizers are told to leave a step out, by the device itself.
            self.optimizer.found_inf = nonfinite.float()  # type: ignore[attr-defined]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._statistics.restore_where(left_out)
        if self.average:
            self.average.update(self.model)
        return norm, nonfinite

    def _lay_out_state(self) -> None:
        """Let the optimizer's state lie in memory as the weights do.

        It may come from a run in another memory format (train.channels_last), and the fused optimizers walk
        through memory without a look at strides.
        """
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _scaled_away(self, left_out: Tensor) -> Tensor:
        """Whether the gradient is not finite although the scaler has given up all of its factor."""
        scale = self.scaler._scale
        return left_out & (scale < 1) if scale is not None else torch.zeros_like(left_out)

    def state(self) -> dict[str, Any]:
        """All of it, beside the weights that are evaluated."""
        return {
            "model": self.model.state_dict() if self.average else None,
            "average_updates": self.average.updates if self.average else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], evaluated: dict[str, Tensor], source: str) -> None:
        """Go back to what `state` gave; settings of the optimizer stay as they are.

        Args:
            evaluated: the weights of the model that was evaluated.
            source: names the checkpoint in errors.

        Raises:
            InputError: it is of another model or optimizer.
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
        if state["scaler"]:  # empty where the run was not in fp16 so far
            self.scaler.load_state_dict(state["scaler"])
