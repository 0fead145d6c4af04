"""From the micro-batches of one optimizer step to gradients of the weights."""

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
    """Computes the losses of micro-batches and backpropagates them.

    A non-finite loss gives non-finite gradients in all processes, so that no process continues while the
    others wait.

    Args:
        model: the trained model.
        network: the module to call: the model itself, or wrapped in DistributedDataParallel.
        criterion: the losses.
        scaler: loss scaler for fp16, otherwise disabled.
        amp: dtype of autocast, or None.
        device: device of the model.
        processes: number of processes that share each loss; each computes its part of the gradient.
        rank_together: compute the losses over all micro-batches as over one batch.
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
        """Add the gradients of the micro-batches to those of the weights.

        Args:
            measure: see `Criterion`; the same in all processes.
        """
        group = [batch.to(self.device) for batch in group]
        if self.rank_together and len(group) > 1:
            return self._together(group, measure)
        last = len(group) - 1
        return _mean([self._alone(batch, len(group), i == last, measure) for i, batch in enumerate(group)])

    def _alone(self, batch: Batch, parts: int, last: bool, measure: bool) -> Losses:
        """The losses and gradients of one of `parts` micro-batches."""
        with self._exchanging(last):
            matched = self._matched(self.network, batch)
            with phase("loss"):
                losses, total = _checked(lambda: self.criterion([matched], measure), [matched])
            with phase("backward"):
                self._scaled(total / parts).backward()
        return losses.detach()

    def _together(self, group: Sequence[Batch], measure: bool) -> Losses:
        """Treat all micro-batches as one batch, without needing the memory for it.

        The first pass keeps only the logits and the positives' deltas of each micro-batch. The losses over
        all of them give the gradients of these, and the second pass backpropagates them through the network,
        one micro-batch at a time.
        """
        with torch.no_grad():
            statistics = running_statistics(self.model)
            before = [torch.empty_like(one) for one in statistics]
            _copy_all(before, statistics)
            firsts = [self._matched(self.model, batch) for batch in group]
            _copy_all(statistics, before)  # batch norm must see every image once
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
        """Average gradients over the processes only once, with the last micro-batch."""
        if last or not isinstance(self.network, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.network.no_sync()

    def _matched(self, network: nn.Module, batch: Batch) -> Matched:
        cast = torch.autocast(self.device.type, self.amp or torch.bfloat16, enabled=self.amp is not None)
        with phase("forward"), cast:
            # Matching decides which boxes the network has to compute.
            outputs = network(batch.images, batch.sizes, boxes_later=True)
            gt = GroundTruth(batch.boxes, batch.labels, batch.valid, batch.ignore)
            return self.criterion.match(outputs, gt)

    def _scaled(self, loss: Tensor) -> Tensor:
        # Each process has only its part of the gradient of a shared loss. DDP averages over the processes,
        # but the parts must be summed.
        return self.scaler.scale(loss * self.processes)


def _copy_all(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy all tensors in one or two launches on a GPU, one per dtype."""
    for dtype in {one.dtype for one in to}:
        torch._foreach_copy_(
            [one for one in to if one.dtype == dtype], [one for one in values if one.dtype == dtype]
        )


def _checked(take: Callable[[], Losses], batches: Sequence[Matched]) -> tuple[Losses, Tensor]:
    """The losses, and the total to backpropagate: NaN with a NaN gradient if it is not finite."""
    try:
        losses = take()
    except NonFiniteLogits:
        every = torch.stack([one.logits.sum() + one.positives.deltas.sum() for one in batches]).sum()
        total = every * torch.nan
        return Losses({"ranked_logits": total}, torch.zeros((), device=total.device)), total
    # The gradient of inf may well be finite. No value is read here, which would wait for the device.
    total = losses.total
    return losses, total * torch.where(torch.isfinite(total.detach()), 1.0, torch.nan)


def _mean(losses: Sequence[Losses]) -> Losses:
    """The mean of each part; positives are summed."""
    names = {name: None for one in losses for name in one.parts}  # an ordered set
    parts = {
        name: torch.stack([one.parts[name] for one in losses if name in one.parts]).mean() for name in names
    }
    shares = [one.ranked_share for one in losses if one.ranked_share is not None]
    return Losses(
        parts,
        torch.stack([one.positives for one in losses]).sum(),
        torch.stack(shares).mean() if shares else None,
    )
