"""Communication for ranking over the global batch: only values per positive and per bin are exchanged."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Gathered(NamedTuple):
    """Values of all processes, and the slice that is this process's own."""

    values: Tensor  # [P, ...], in the order of the processes
    own: slice


class Exchange:
    """The collective calls of a ranking; without a process group each is the identity.

    Every process of the group must make the same calls in the same order. The traffic depends only on
    the number of positives: no logit of a negative leaves its process.

    Args:
        group: the processes whose batches are ranked jointly; None for this process alone.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.size = dist.get_world_size(group) if group is not None else 1
        self.bytes_sent = 0  # by this process, so far

    def gather(self, values: Tensor) -> Gathered:
        """values [p, ...], where p may differ between processes -> the values of all processes."""
        if self._group is None:
            return Gathered(values, slice(0, len(values)))
        count = torch.tensor([len(values)], device=values.device)
        counts = [torch.empty_like(count) for _ in range(self.size)]
        dist.all_gather(counts, count, group=self._group)
        lengths = torch.cat(counts).tolist()
        # Collectives need equal shapes, so all pad to the longest.
        padded = values.new_zeros((max(lengths), *values.shape[1:]))
        padded[: len(values)] = values
        shares = [torch.empty_like(padded) for _ in range(self.size)]
        if padded.numel():
            dist.all_gather(shares, padded, group=self._group)
        self.bytes_sent += count.nbytes + padded.nbytes
        start = sum(lengths[: dist.get_rank(self._group)])
        every = torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])
        return Gathered(every, slice(start, start + len(values)))

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of values of one shape."""
        if self._group is None:
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values, group=self._group)
        self.bytes_sent += values.nbytes
        return values

    def sum_of_losses(self, share: Tensor) -> Tensor:
        """The sum over processes of their shares of a loss; its gradient is that of this process's share."""
        if self._group is None:
            return share
        detached = share.detach()
        return share + (self.sum(detached) - detached)
