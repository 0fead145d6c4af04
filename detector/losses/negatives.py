"""The negatives of a batch, binned by the soft steps: the passes over all logits, in PyTorch."""

from typing import NamedTuple

import torch
from torch import Tensor

from detector.losses.ranking import SoftSteps, blocks

# Gathering single values from a block pays off up to this fraction of it.
_SPARSE = 0.25


class Negatives:
    """The logits whose target is 0, counted and pulled by soft steps.

    Args:
        steps: the steps of the positives.
        logits: float [M], finite.
        targets: integer [M]; the negatives are the zeros.
    """

    def __init__(self, steps: SoftSteps, logits: Tensor, targets: Tensor) -> None:
        self._steps, self._logits, self._targets = steps, logits, targets
        self._binned: list[_BinnedBlock] = []

    def count(self) -> Tensor:
        """Find the bin of every negative; returns count and sum per bin, float64 [2, 2P + 1]."""
        steps, logits = self._steps, self._logits
        totals = torch.zeros(2, len(steps.edges) + 1, dtype=torch.float64, device=logits.device)
        # Non-negatives are few and kept by index: a pass over all targets is expensive.
        special = self._targets.nonzero().squeeze(1)
        lowest = steps.lowest
        parts = list(blocks(len(logits), logits.device))
        ends = torch.tensor([part.stop for part in parts], device=logits.device)
        first = 0
        for block, last in zip(parts, torch.searchsorted(special, ends).tolist(), strict=True):
            values = logits[block].to(steps.dtype)
            left_out = special[first:last] - block.start
            first = last
            # No step counts or pulls a negative below all of them.
            counted = (values >= lowest).index_fill_(0, left_out, False)
            picked = None
            if int(counted.count_nonzero()) <= _SPARSE * len(values):
                picked = counted.nonzero().squeeze(1)
                values = values.index_select(0, picked)
                bins = steps.bins_of(values)
            else:
                bins = steps.bins_of(values).index_fill_(0, left_out, 0)
            self._binned.append(_BinnedBlock(block, picked, bins))
            totals += steps.totals(values, bins)
        return totals

    def pull(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """sum_i w_i H(n_j - t_i) for every negative j, 0 for all others: [M] of dtype. Call once."""
        offset, slope = self._steps.lines(weights)
        pulls = torch.empty_like(self._logits, dtype=dtype)
        for block, picked, bins in self._binned:
            values = self._logits[block]
            if picked is not None:
                values = values.index_select(0, picked)
            # index_select takes int32 and is the fastest gather.
            pull = offset.index_select(0, bins).addcmul_(slope.index_select(0, bins), values.double())
            pull.clamp_min_(0)
            if picked is None:
                pulls[block] = pull
            else:
                pulls[block].zero_().index_copy_(0, picked, pull.to(dtype))
        return pulls


class _BinnedBlock(NamedTuple):
    """A block of the logits and the bins of its values."""

    block: slice
    picked: Tensor | None  # int64, indices of the selected values within the block; None for all
    bins: Tensor  # int32, of the selected values
