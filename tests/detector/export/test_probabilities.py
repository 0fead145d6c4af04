"""Scores in an exported graph are those of the detector."""

import numpy as np
import torch

from detector.evaluation.calibration import Calibration, ScoreMap
from detector.export.probabilities import Probabilities

LOGITS = np.float32([-900, -100, -4, -2.5, -1.001, -1, -0.999, 0, 1.5, 2, 2.001, 30, 36, 90])


def test_calibrated_scores_are_those_of_the_calibration() -> None:
    """Oracle: `Calibration`, below, at, between and above its knots, two of which nearly coincide, for each
    class alone and for all together; a map may have a single knot.
    """
    several = ScoreMap((-2.5, -1.0, -1.0 + 1e-9, 2.0), (0.02, 0.3, 0.4, 0.9))
    calibration = Calibration((several, ScoreMap((0.5,), (0.25,)), ScoreMap((-1.0, 3.0), (0.1, 0.2))))
    sigmoid = torch.from_numpy(LOGITS).double().sigmoid().numpy()
    labels = [np.full(len(LOGITS), label) for label in range(3)] + [np.arange(len(LOGITS)) % 3]
    expected = [calibration(sigmoid, each) for each in labels]
    batch = torch.from_numpy(LOGITS).expand(4, -1), torch.from_numpy(np.stack(labels))
    found = Probabilities(calibration)(*batch)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_scores_without_calibration_keep_their_order_far_below_zero() -> None:
    logits = torch.tensor([-40.0, -30.0, -20.0, 0.0])
    scores = Probabilities(None)(logits, torch.zeros_like(logits, dtype=torch.int64))
    assert scores.tolist() == sorted(set(scores.tolist()))
    assert scores[-1] == 0.5
