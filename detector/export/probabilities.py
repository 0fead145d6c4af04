"""Logits -> the scores that the detector gives, as tensor operations."""

import torch
from torch import Tensor, nn

from detector.evaluation.calibration import Calibration

# Beyond these a score of float64 is 0 or 1, and `Calibration` cuts it off.
_LEAST_LOGIT, _MOST_LOGIT = -708.3964185322641, 36.7368005696771


class Probabilities(nn.Module):
    """Logits float32 [...] -> scores float32 [...]: calibrated as `Calibration` does it, or their sigmoid.

    In float64 within, since knots may lie closer together than float32 can tell.
    """

    def __init__(self, calibration: Calibration | None) -> None:
        super().__init__()
        self.calibrated = calibration is not None
        if calibration is None:
            return
        x, y = (
            torch.tensor(values, dtype=torch.float64)
            for values in (calibration.logits, calibration.probabilities)
        )
        self.knots: Tensor
        self.heights: Tensor
        self.slopes: Tensor
        self.register_buffer("knots", x)
        self.register_buffer("heights", y)
        self.register_buffer("slopes", torch.cat((y.diff() / x.diff(), y.new_zeros(1))))

    def forward(self, logits: Tensor) -> Tensor:
        x = logits.double()
        if not self.calibrated:
            return x.sigmoid().float()
        x = x.clamp(_LEAST_LOGIT, _MOST_LOGIT)
        knot = ((x[..., None] >= self.knots).sum(-1) - 1).clamp(min=0)  # the last one at or below x
        inside = self.heights[knot] + self.slopes[knot] * (x - self.knots[knot])
        first, last = self.knots[0], self.knots[-1]
        below = self.heights[0] * (x - first).clamp(max=0).exp()
        above = 1 - (1 - self.heights[-1]) * (last - x).clamp(max=0).exp()
        return torch.where(x < first, below, torch.where(x > last, above, inside)).float()
