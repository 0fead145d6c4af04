"""The soft steps of ranking.py on a GPU, by the Triton kernels of kernels.py.

`GpuSteps` and `GpuNegatives` give the results of `SoftSteps` and `Negatives` with a third of the memory and
launches, and never wait for the GPU. The sums per bin use atomic additions, whose order changes from run to
run: in float64 the difference is near 1e-16. Under torch.use_deterministic_algorithms plain PyTorch is used
instead. docs/ranking.md has the formulas.
"""

import torch
from torch import Tensor

from detector.losses import kernels
from detector.losses.ranking import searched_break_points

# With few bins all values would add to the same few addresses, one after the other. So neighbouring values
# add to different copies of the bins, as many as fit a GPU's L2 cache.
_CELLS = 1 << 19


class GpuSteps:
    """P soft steps on a GPU: `counts_above`, `own_counts_above` and `own_pull` are those of `SoftSteps`.

    In memory, lines keep the two numbers of a bin side by side.

    Attributes:
        dtype: of the thresholds.
        delta: half-width of the step.
        search_edges: [2^k - 1] of dtype, ascending, padded with infinity: a binary search in them needs no
            bounds checks.
    """

    def __init__(self, thresholds: Tensor, delta: float) -> None:
        p, self.delta, self.dtype = len(thresholds), float(delta), thresholds.dtype
        self._centres = thresholds
        if delta == 0:
            points = torch.stack(searched_break_points(thresholds, 0.0))
        else:
            points = thresholds.new_empty(2, p)
            kernels.break_points(thresholds, points, self.delta)
        self.search_edges = thresholds.new_full(((1 << (2 * p).bit_length()) - 1,), torch.inf)
        self._edges = thresholds.new_empty(2 * p, dtype=torch.float64)
        self._origins, self._windows = (thresholds.new_empty(2, p, dtype=torch.int32) for _ in range(2))
        kernels.merge(
            thresholds, points, self.search_edges, self._edges, self._origins, self._windows, self.delta
        )

    def __len__(self) -> int:
        """P."""
        return len(self._centres)

    def own_counts_above(self, weights: Tensor | None = None) -> Tensor:
        """`counts_above` of the thresholds themselves, each counted with its weight (float64 [P]) or as 1."""
        return self._own(weights, below=False)

    def own_pull(self, weights: Tensor) -> Tensor:
        """pull(t_k), see `lines`, at each threshold: float64 [P]."""
        return self._own(weights, below=True)

    def _own(self, weights: Tensor | None, below: bool) -> Tensor:
        if weights is None:
            weights = torch.ones_like(self._edges[: len(self)])
        sums, before = torch.empty_like(weights), weights.new_empty(len(self) + 1, 2)
        kernels.window_sums(
            self._centres, weights.contiguous(), self._windows, before, sums, self.delta, below
        )
        return sums

    def counts_above(self, totals: Tensor) -> Tensor:
        """sum_j H(x_j - t_i) for every threshold, from the totals of all values: float64 [P]."""
        areas = totals.new_empty(2, len(self))
        kernels.counts_above(self._edges, self._origins, totals.contiguous(), areas, self.delta)
        if self.delta == 0:
            return areas.mean(0)
        return (areas[0] - areas[1]).div_(2 * self.delta)

    def lines(self, weights: Tensor) -> Tensor:
        """Offset and slope of pull(x) = sum_i w_i H(x - t_i) in every bin: float64 [2P + 1, 2]."""
        lines = weights.new_empty(2 * len(self) + 1, 2)
        kernels.lines(self._edges, self._origins, weights.contiguous(), lines, self.delta)
        return lines


class GpuNegatives:
    """The negatives of a batch on a GPU: same arguments, methods and results as `Negatives`.

    For float32 logits the bins occupy the memory that the gradient will use: none beyond it is needed.
    """

    def __init__(self, steps: GpuSteps, logits: Tensor, targets: Tensor) -> None:
        self._steps, self._logits, self._targets = steps, logits.contiguous(), targets.contiguous()
        self._bins = torch.empty(len(logits), dtype=torch.int32, device=logits.device)

    def count(self) -> Tensor:
        """Find the bin of every negative; returns count and sum per bin, float64 [2, 2P + 1]."""
        n, bins = len(self._logits), 2 * len(self._steps) + 1
        copies = max(1, min(_CELLS, n // 4) // bins)
        counts = self._bins.new_zeros(copies, bins)
        sums = torch.zeros_like(counts, dtype=torch.float64)
        kernels.find_bins(self._logits, self._targets, self._steps.search_edges, self._bins, counts, sums)
        return torch.stack((counts.sum(0, dtype=torch.float64), sums.sum(0)))

    def pull(self, weights: Tensor, dtype: torch.dtype) -> Tensor:
        """sum_i w_i H(n_j - t_i) for every negative j, 0 for all others: [M] of dtype. Call once."""
        in_place = dtype == torch.float32
        pulls = self._bins.view(dtype) if in_place else torch.empty_like(self._logits, dtype=dtype)
        kernels.pull(self._logits, self._bins, self._steps.lines(weights), pulls)
        return pulls
