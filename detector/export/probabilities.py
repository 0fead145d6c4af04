"""Logits -> the detector's scores, as tensor operations."""

import numpy as np
import torch
from torch import Tensor, nn

from detector.evaluation.calibration import Calibration

# The logits of the extreme scores to which `Calibration` clips float64 scores.
_LEAST_LOGIT, _MOST_LOGIT = -708.3964185322641, 36.7368005696771


class Probabilities(nn.Module):
    """Logits float32 [...] and labels int64 [...] -> scores float32 [...].

    Calibrated as by `Calibration`, or else the sigmoid; computed in float64, since knots may lie closer
    together than float32 can resolve.
    """

    def __init__(self, calibration: Calibration | None) -> None:
        super().__init__()
        self.calibrated = calibration is not None
        if calibration is None:
            return
        maps = calibration.maps
        most = max(len(one.logits) for one in maps)
        self.knots: Tensor  # [C, K], the last one of each class repeated
        self.heights: Tensor
        self.slopes: Tensor
        for name, rows in (
            ("knots", [one.logits for one in maps]),
            ("heights", [one.probabilities for one in maps]),
            ("slopes", [(*(np.diff(one.probabilities) / np.diff(one.logits)), 0.0) for one in maps]),
        ):
            filled = [(*row, *[row[-1]] * (most - len(row))) for row in rows]
            self.register_buffer(name, torch.tensor(filled, dtype=torch.float64))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        x = logits.double()
        if not self.calibrated:
            return x.sigmoid().float()
        x = x.clamp(_LEAST_LOGIT, _MOST_LOGIT)
        knots, heights, slopes = (values[labels] for values in (self.knots, self.heights, self.slopes))
        # The last knot at or below x.
        knot = ((x[..., None] >= knots).sum(-1, keepdim=True) - 1).clamp(min=0)
        start, height, slope = (values.gather(-1, knot)[..., 0] for values in (knots, heights, slopes))
        inside = height + slope * (x - start)
        first, last = knots[..., 0], knots[..., -1]
        below = heights[..., 0] * (x - first).clamp(max=0).exp()
        above = 1 - (1 - heights[..., -1]) * (last - x).clamp(max=0).exp()
        return torch.where(x < first, below, torch.where(x > last, above, inside)).float()
