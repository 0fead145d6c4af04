"""From the micro-batches of one optimizer step to gradients in the weights."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.sample import Batch
from detector.criterion import Criterion, GroundTruth, Losses
from detector.losses import NonFiniteLogits
from detector.retinanet import HeadOutputs, RetinaNet


class NonFiniteLoss(ValueError):
    """The loss is NaN or infinite; the message says which part.

    rows: of the images that it was taken over, in their DetectionSet.
    """

    def __init__(self, detail: str, batches: Sequence[Batch]) -> None:
        super().__init__(detail)
        self.rows = torch.cat([batch.indices for batch in batches]).tolist()


class Gradients:
    """Takes the losses of micro-batches and backpropagates them.

    Args:
        model, criterion: what is trained, and on what.
        scaler: of the loss, in fp16; switched off otherwise.
        amp: dtype of autocast, or None.
        device: where the model is.
        processes: that share each loss, every one with its part of the gradient.
        rank_together: take the losses over all micro-batches as over one batch.
    """

    def __init__(
        self,
        model: RetinaNet,
        criterion: Criterion,
        scaler: torch.amp.GradScaler,
        amp: torch.dtype | None,
        device: torch.device,
        processes: int,
        rank_together: bool,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.scaler = scaler
        self.amp = amp
        self.device = device
        self.processes = processes
        self.rank_together = rank_together

    def __call__(self, group: Sequence[Batch]) -> Losses:
        """Add the gradients of the micro-batches to those in the weights.

        Raises:
            NonFiniteLoss: a loss is NaN or infinite.
        """
        group = [batch.to(self.device) for batch in group]
        if self.rank_together and len(group) > 1:
            return self._together(group)
        return _mean([self._alone(batch, len(group)) for batch in group])

    def _alone(self, batch: Batch, parts: int) -> Losses:
        """One of `parts` micro-batches."""
        losses = _checked(lambda: self.criterion(self._forward(batch), _ground_truth(batch)), [batch])
        self._scaled(losses.total / parts).backward()
        return losses.detach()

    def _together(self, group: Sequence[Batch]) -> Losses:
        """All micro-batches as one batch, which memory would not hold.

        The first pass keeps of each micro-batch only its head outputs; the losses over all of them
        give these their gradients; the second pass carries each one's share into the network.
        """
        with torch.no_grad():
            buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
            outputs = [self._forward(batch) for batch in group]
            for buffer, before in buffers:  # batch norm is to see every image once
                buffer.copy_(before)
        for output in outputs:
            output.logits.requires_grad_()
            output.deltas.requires_grad_()
        gts = [_ground_truth(batch) for batch in group]
        losses = _checked(lambda: self.criterion.over_micro_batches(outputs, gts), group)
        self._scaled(losses.total).backward()
        for batch, first in zip(group, outputs, strict=True):
            second = self._forward(batch)
            torch.autograd.backward([second.logits, second.deltas], [first.logits.grad, first.deltas.grad])
        return losses.detach()

    def _forward(self, batch: Batch) -> HeadOutputs:
        with torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None):
            return self.model(batch.images, batch.sizes)

    def _scaled(self, loss: Tensor) -> Tensor:
        # Each process has its part of a shared loss's gradient, and the average over the processes
        # that follows must be the sum of the parts.
        return self.scaler.scale(loss * self.processes)


def _checked(take: Callable[[], Losses], batches: Sequence[Batch]) -> Losses:
    """The losses, if they are finite."""
    try:
        losses = take()
    except NonFiniteLogits as error:
        raise NonFiniteLoss(str(error), batches) from None
    if not torch.isfinite(losses.total):
        detail = ", ".join(f"{name} {value.item():g}" for name, value in losses.parts.items())
        raise NonFiniteLoss(detail, batches)
    return losses


def _ground_truth(batch: Batch) -> GroundTruth:
    return GroundTruth(batch.boxes, batch.labels, batch.valid, batch.ignore)


def _mean(losses: Sequence[Losses]) -> Losses:
    """The mean of the parts, over the positives of all."""
    names = losses[0].parts
    parts = {name: torch.stack([one.parts[name] for one in losses]).mean() for name in names}
    return Losses(parts, torch.stack([one.positives for one in losses]).sum())
