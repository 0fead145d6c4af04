"""The share of the negatives that a ranking loss ranks: by hand, and by where its gradient is not 0."""

import pytest
import torch

from detector.losses import Exchange, ap_loss
from detector.ranked import ranked_share


def share(logits: torch.Tensor, targets: torch.Tensor, delta: float, class_by_class: bool = False) -> float:
    return float(
        ranked_share(logits, targets, delta=delta, class_by_class=class_by_class, exchange=Exchange())
    )


def test_a_case_by_hand() -> None:
    """Lowest positive 1, delta 1: of the negatives 3, 0.5, 0, -4 the first two are above 0."""
    logits = torch.tensor([[[2.0, 3.0], [1.0, 0.5], [0.0, -4.0], [9.0, 9.0]]])
    targets = torch.tensor([[[1, 0], [1, 0], [0, 0], [-1, -1]]], dtype=torch.int8)
    assert share(logits, targets, 1.0) == pytest.approx(2 / 4)
    # By class: the second has no positive, so none of it is ranked; the 0 of the first is not above 0.
    assert share(logits, targets, 1.0, class_by_class=True) == 0
    assert share(logits, targets, 1.5, class_by_class=True) == pytest.approx(1 / 4)
    assert share(logits, (targets == 2).char(), 1.0) == 0  # no positives at all


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_part_of_the_negatives_with_a_gradient(dtype: torch.dtype, delta: float) -> None:
    """Oracle: the AP-loss without its envelope, where every pair in wrong order contributes."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(2, 500, 3, generator=generator) < 0.01).char()
    logits = torch.randn(2, 500, 3, generator=generator) + 2 * targets
    logits = logits.to(dtype)
    lowest = logits[targets == 1].argmin()
    logits[0, 0] = logits[targets == 1][lowest]  # ties
    targets[0, 0] = 0
    logits.requires_grad_()
    ap_loss(logits, targets, delta=delta, interpolated=False).backward()
    assert logits.grad is not None
    pulled = (logits.grad[targets == 0] > 0).double().mean()
    assert 0.1 < pulled < 0.9
    assert share(logits, targets, delta) == pytest.approx(float(pulled), abs=1e-6)
