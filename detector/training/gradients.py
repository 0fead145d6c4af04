"""From the micro-batches of one optimizer step to gradients in the weights."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.sample import Batch
from detector.criterion import Criterion, GroundTruth, Losses, Matched
from detector.folding import running_statistics
from detector.losses import NonFiniteLogits
from detector.retinanet import RetinaNet
from detector.training.profile import phase


class Gradients:
    """Takes the losses of micro-batches and backpropagates them.

    A loss that is not finite gives gradients that are not finite, in all processes: none of them can
    go on while the others wait.

    Args:
        model: what is trained.
        network: the model as it is called: itself, or within DistributedDataParallel.
        criterion: on what.
        scaler: of the loss, in fp16; switched off otherwise.
        amp: dtype of autocast, or None.
        device: where the model is.
        processes: that share each loss, every one with its part of the gradient.
        rank_together: take the losses over all micro-batches as over one batch.
    """

    def __init__(
        self,
        model: RetinaNet,
        network: nn.Module,
        criterion: Criterion,
        scaler: torch.amp.GradScaler,
        amp: torch.dtype | None,
        device: torch.device,
        processes: int,
        rank_together: bool,
    ) -> None:
        self.model = model
        self.network = network
        self.criterion = criterion
        self.scaler = scaler
        self.amp = amp
        self.device = device
        self.processes = processes
        self.rank_together = rank_together

    def __call__(self, group: Sequence[Batch], measure: bool = False) -> Losses:
        """Add the gradients of the micro-batches to those in the weights.

        Args:
            measure: see `Criterion`; the same in all processes.
        """
        group = [batch.to(self.device) for batch in group]
        if self.rank_together and len(group) > 1:
            return self._together(group, measure)
        last = len(group) - 1
        return _mean([self._alone(batch, len(group), i == last, measure) for i, batch in enumerate(group)])

    def _alone(self, batch: Batch, parts: int, last: bool, measure: bool) -> Losses:
        """One of `parts` micro-batches."""
        with self._exchanging(last):
            matched = self._matched(self.network, batch)
            with phase("loss"):
                losses, total = _checked(lambda: self.criterion([matched], measure), [matched])
            with phase("backward"):
                self._scaled(total / parts).backward()
        return losses.detach()

    def _together(self, group: Sequence[Batch], measure: bool) -> Losses:
        """All micro-batches as one batch, which memory would not hold.

        The first pass keeps of each micro-batch only its logits and the positives' deltas; the losses over
        all of them give these their gradients; the second pass carries each one's share into the network.
        """
        with torch.no_grad():
            statistics = running_statistics(self.model)
            before = [torch.empty_like(one) for one in statistics]
            _copy_all(before, statistics)
            firsts = [self._matched(self.model, batch) for batch in group]
            _copy_all(statistics, before)  # batch norm is to see every image once
        for first in firsts:
            first.logits.requires_grad_()
            first.positives.deltas.requires_grad_()
        with phase("loss"):
            losses, total = _checked(lambda: self.criterion(firsts, measure), firsts)
            self._scaled(total).backward()
        for i, (batch, first) in enumerate(zip(group, firsts, strict=True)):
            with self._exchanging(i == len(group) - 1):
                second = self._matched(self.network, batch)
                with phase("backward"):
                    torch.autograd.backward(
                        [second.logits, second.positives.deltas],
                        [first.logits.grad, first.positives.deltas.grad],
                    )
        return losses.detach()

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients travel between the processes once, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _matched(self, network: nn.Module, batch: Batch) -> Matched:
        cast = torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)
        with phase("forward"), cast:
            # The matching knows which boxes the network need not compute.
            outputs = network(batch.images, batch.sizes, boxes_later=True)
            gt = GroundTruth(batch.boxes, batch.labels, batch.valid, batch.ignore)
            return self.criterion.match(outputs, gt)

    def _scaled(self, loss: Tensor) -> Tensor:
        # Each process has its part of a shared loss's gradient, and the average over the processes
        # that follows must be the sum of the parts.
        return self.scaler.scale(loss * self.processes)


def _copy_all(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """In a launch or two on a GPU, which one dtype at a time allows."""
    for dtype in {one.dtype for one in to}:
        torch._foreach_copy_(
            [one for one in to if one.dtype == dtype], [one for one in values if one.dtype == dtype]
        )


def _checked(take: Callable[[], Losses], batches: Sequence[Matched]) -> tuple[Losses, Tensor]:
    """The losses, and their total to backpropagate: NaN with a gradient of NaN if it is not finite."""
    try:
        losses = take()
    except NonFiniteLogits:
        every = torch.stack([one.logits.sum() + one.positives.deltas.sum() for one in batches]).sum()
        total = every * torch.nan
        return Losses({"ranked_logits": total}, torch.zeros((), device=total.device)), total
    # inf has a gradient of its own, which may well be finite. No value is looked at here: the device
    # would have to be waited for.
    total = losses.total
    return losses, total * torch.where(torch.isfinite(total.detach()), 1.0, torch.nan)


def _mean(losses: Sequence[Losses]) -> Losses:
    """The mean of the parts, over the positives of all."""
    names = {name: None for one in losses for name in one.parts}  # a set in order
    parts = {
        name: torch.stack([one.parts[name] for one in losses if name in one.parts]).mean() for name in names
    }
    shares = [one.ranked_share for one in losses if one.ranked_share is not None]
    return Losses(
        parts,
        torch.stack([one.positives for one in losses]).sum(),
        torch.stack(shares).mean() if shares else None,
    )
