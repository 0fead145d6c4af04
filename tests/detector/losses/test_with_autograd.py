"""What the losses do within PyTorch's machinery: second derivatives, torch.compile."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detector.losses import alrp_loss, ap_loss, class_ap_loss, focal_loss, rank_sort_loss, rank_sort_loss_of

Loss = Callable[[Tensor, Tensor], Tensor]


def alrp(logits: Tensor, targets: Tensor) -> Tensor:
    return alrp_loss(logits, targets, torch.full((int((targets == 1).sum()),), 0.3)).ranking_error


def rank_sort(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack(rank_sort_loss(logits, 0.8 * targets)).sum()


def rank_sort_of(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack(
        rank_sort_loss_of(logits, targets, torch.full((int((targets == 1).sum()),), 0.8))
    ).sum()


RANKING: list[Loss] = [ap_loss, class_ap_loss, alrp, rank_sort, rank_sort_of]


def batch(positives: int = 2) -> tuple[Tensor, Tensor]:
    """Logits and targets [20, 3] with this many positives."""
    generator = torch.Generator().manual_seed(positives)
    targets = torch.zeros(60, dtype=torch.long)
    targets[torch.randperm(60, generator=generator)[:positives]] = 1
    return torch.randn(20, 3, generator=generator).requires_grad_(), targets.view(20, 3)


@pytest.mark.parametrize("loss", [*RANKING, focal_loss])
@pytest.mark.parametrize("power", [1, 2])  # of the loss: the incoming gradient is a constant, or is not
def test_a_second_derivative_is_refused(loss: Loss, power: int) -> None:
    """Otherwise only part of it would be computed, without a warning."""
    logits, targets = batch()
    value = loss(2 * logits, targets) ** power
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivative"):
        torch.autograd.grad(value, logits, create_graph=True)
    value.backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, first, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [*RANKING, focal_loss])
def test_a_loss_that_is_kept_keeps_no_logits(loss: Loss) -> None:
    """Otherwise a list of the losses so far would keep all their logits in memory."""
    leaf, targets = batch()
    logits = 2 * leaf
    gone = weakref.ref(logits)
    value = loss(logits, targets)
    del logits
    assert gone() is None
    value.backward()
    assert leaf.grad is not None


@pytest.mark.parametrize("loss", [ap_loss, class_ap_loss, rank_sort, focal_loss])
def test_torch_compile_leaves_a_ranking_alone(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would trace numba's loops, and recompile for each number of positives."""
    torch._dynamo.reset()

    @torch.compile(backend="eager")
    def step(logits: Tensor, targets: Tensor) -> Tensor:
        return 3 * loss(2 * logits, targets)

    for positives in (2, 7, 11, 5):
        if positives == 11:  # by then it knows that gradients are needed, and what to leave alone
            monkeypatch.setattr("torch._dynamo.config.error_on_recompile", True)
        logits, targets = batch(positives)
        value = step(logits, targets)
        (gradient,) = torch.autograd.grad(value, logits)
        expected = 3 * loss(2 * logits, targets)
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=0, atol=0)
    torch._dynamo.reset()
