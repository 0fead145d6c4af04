"""Scores in an exported graph are those of the detector."""

import numpy as np
import torch

from detector.evaluation.calibration import Calibration
from detector.export.probabilities import Probabilities

LOGITS = np.float32([-900, -100, -4, -2.5, -1.001, -1, -0.999, 0, 1.5, 2, 2.001, 30, 36, 90])


def test_calibrated_scores_are_those_of_the_calibration() -> None:
    """The oracle is `Calibration`, below, at, between and above its knots, two of which nearly coincide."""
    calibration = Calibration((-2.5, -1.0, -1.0 + 1e-9, 2.0), (0.02, 0.3, 0.4, 0.9))
    sigmoid = torch.from_numpy(LOGITS).double().sigmoid().numpy()
    found = Probabilities(calibration)(torch.from_numpy(LOGITS))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), calibration(sigmoid), atol=1e-7)


def test_a_single_knot_is_a_calibration_too() -> None:
    calibration = Calibration((0.5,), (0.25,))
    sigmoid = torch.from_numpy(LOGITS).double().sigmoid().numpy()
    np.testing.assert_allclose(
        Probabilities(calibration)(torch.from_numpy(LOGITS)).numpy(), calibration(sigmoid), atol=1e-7
    )


def test_scores_without_calibration_keep_their_order_far_below_zero() -> None:
    scores = Probabilities(None)(torch.tensor([-40.0, -30.0, -20.0, 0.0]))
    assert scores.tolist() == sorted(set(scores.tolist()))
    assert scores[-1] == 0.5
