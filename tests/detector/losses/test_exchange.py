"""Losses over several processes against one process that has the whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from detector.builders.losses import build_objective
from detector.config import LossConfig
from detector.losses import Exchange, NonFiniteLogits, ap_loss, backends, ce_ohem_loss
from detector.objectives import Positives
from tests.processes import Work, run_processes

CONFIGS = {
    **{name: LossConfig(name=name, box="giou") for name in ("ap", "alrp", "rank_sort", "focal", "ce_ohem")},
    **{
        f"{name}, class by class": LossConfig(name=name, box="giou", class_by_class=True)
        for name in ("ap", "alrp", "rank_sort")
    },
}
STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
IMAGES, ANCHORS, CLASSES = 8, 50, 3
Share = tuple[Tensor, Tensor, Positives]


def batch(anchors: int = ANCHORS) -> Share:
    """Eight images: the last two hold no positive at all, images 2 and 3 nothing but ignored anchors."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(IMAGES, anchors, CLASSES, generator=generator) * 2
    targets = torch.zeros(logits.shape, dtype=torch.int8)
    targets[:6, :4, 1], targets[:6, 5:8], targets[2:4] = 1, -1, -1
    targets[0, 10, 2] = 1  # the processes have different numbers of positives
    count = int((targets == 1).sum())
    corner = torch.rand(2, count, 2, generator=generator) * 30
    gt_boxes, boxes = torch.cat((corner, corner + 10 + corner.flip(0) / 3), dim=2)
    deltas = torch.randn(count, 4, generator=generator)
    return logits, targets, Positives(deltas, gt_boxes, boxes)


def share_of(rank: int, count: int, whole: Share) -> Share:
    """The images of one process, with their positives."""
    logits, targets, positives = whole
    images = slice(rank * IMAGES // count, (rank + 1) * IMAGES // count)
    image_of_positive = (targets == 1).nonzero()[:, 0]
    mine = (image_of_positive >= images.start) & (image_of_positive < images.stop)
    return logits[images], targets[images], Positives(*(part[mine] for part in positives))


def losses_and_gradients(share: Share, name: str, exchange: Exchange) -> dict[str, Tensor]:
    logits, targets, positives = share
    logits, deltas = logits.clone().requires_grad_(), positives.deltas.clone().requires_grad_()
    objective = build_objective(CONFIGS[name], STD, exchange)
    parts = objective(logits, targets, positives._replace(deltas=deltas))
    torch.stack(list(parts.values())).sum().backward()
    assert logits.grad is not None and deltas.grad is not None
    values = {name: value.detach() for name, value in parts.items()}
    return {**values, "logits.grad": logits.grad, "deltas.grad": deltas.grad}


def work(rank: int, count: int) -> dict[str, Any]:
    """In every process: all losses over its share, the traffic, and the effect of a bad logit elsewhere."""
    group = dist.group.WORLD
    result: dict[str, Any] = {
        name: losses_and_gradients(share_of(rank, count, batch()), name, Exchange(group)) for name in CONFIGS
    }
    nothing = torch.zeros(2, 5, 3)
    result["empty"] = losses_and_gradients(
        (nothing, nothing.to(torch.int8), Positives(*torch.zeros(3, 0, 4))), "rank_sort", Exchange(group)
    )
    logits, targets, _ = share_of(rank, count, batch())
    some = slice(0, 0) if rank == 0 else slice(None)
    result["one process idle"] = ap_loss(logits[some], targets[some], exchange=Exchange(group))
    for anchors in (ANCHORS, 20 * ANCHORS):
        exchange = Exchange(group)
        logits, targets, _ = share_of(rank, count, batch(anchors))
        ap_loss(logits, targets, exchange=exchange)
        result[f"bytes {anchors}"] = exchange.bytes_sent
    logits, targets, _ = share_of(rank, count, batch())
    if rank == count - 1:
        logits[-1, -1, -1] = torch.nan
    with pytest.raises(NonFiniteLogits) as caught:
        ap_loss(logits, targets, exchange=Exchange(group))
    result["not finite"] = str(caught.value)
    return result


def work_without_compiled_loops(rank: int, count: int) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "numba_works", lambda: False)
        return work(rank, count)


@pytest.mark.parametrize("work, count", [(work_without_compiled_loops, 2), (work, 4)])
def test_processes_together_compute_what_one_does_on_the_whole_batch(
    work: Work, count: int, tmp_path: Path
) -> None:
    """With 4 processes one has only ignored anchors, and one has negatives but no positives."""
    # First, so that the loops are compiled once and not in every process.
    expected = {name: losses_and_gradients(batch(), name, Exchange()) for name in CONFIGS}
    results = run_processes(work, count, tmp_path)
    for name in CONFIGS:
        if name == "ce_ohem":
            continue  # each process has its own hard negatives; see the next test
        for key, value in expected[name].items():
            found = [result[name][key] for result in results]
            if not key.endswith(".grad"):
                # The balance is the difference of two losses of about 1, and has their rounding error.
                absolute = 1e-6 if key == "balance" else 1e-7
                for one in found:
                    torch.testing.assert_close(one, value, rtol=1e-6, atol=absolute)
            else:
                torch.testing.assert_close(torch.cat(found), value, rtol=1e-6, atol=1e-8)
    logits, targets, _ = batch()
    idle = IMAGES // count
    rest = ap_loss(logits[idle:], targets[idle:])
    for result in results:
        torch.testing.assert_close(result["one process idle"], rest)
        assert all((value == 0).all() for value in result["empty"].values())
        # What is sent depends on the positives alone: 20 times the anchors, the same bytes.
        assert result[f"bytes {ANCHORS}"] == result[f"bytes {20 * ANCHORS}"]
        assert "not finite" in result["not finite"]
    assert "negative, at flat index" in results[-1]["not finite"]
    assert "another process" in results[0]["not finite"]
    print(f"{count} processes: {results[0][f'bytes {ANCHORS}']} bytes sent by each, per step")


@pytest.mark.parametrize("elsewhere", [0, 5])
def test_a_process_without_positives_looks_for_no_hard_negatives_beside_those_of_others(
    elsewhere: int,
) -> None:
    """If no process has any, each takes as many as for one positive, and the mean of their losses counts."""

    class OneOfTwo(Exchange):
        def sum(self, values: Tensor) -> Tensor:
            return values + elsewhere if not values.is_floating_point() else values

    exchange, logits = OneOfTwo(), torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0], requires_grad=True)
    exchange.size = 2
    loss = ce_ohem_loss(logits, torch.zeros(5, dtype=torch.int8), 3.0, exchange)
    hardest = torch.nn.functional.softplus(torch.tensor([2.0, 1.0, 0.5])).sum() / 2
    torch.testing.assert_close(loss.detach(), torch.tensor(0.0) if elsewhere else hardest)
    loss.backward()
    assert logits.grad is not None and int(logits.grad.count_nonzero()) == (0 if elsewhere else 3)


def test_hard_negatives_of_shares_are_normalised_together() -> None:
    """Oracle: each share's own loss times its number of positives, divided by that of both."""
    shares = [share_of(rank, 2, batch()) for rank in range(2)]
    counts = [len(share[2].deltas) for share in shares]
    alone = [losses_and_gradients(share, "ce_ohem", Exchange())["classification"] for share in shares]

    class Other(Exchange):
        """The exchange as the first of two processes sees it."""

        def sum(self, values: Tensor) -> Tensor:
            return values + counts[1] if not values.is_floating_point() else values

        def total(self, share: Tensor) -> Tensor:
            return share

    together = losses_and_gradients(shares[0], "ce_ohem", Other())["classification"]
    torch.testing.assert_close(together, alone[0] * counts[0] / sum(counts))
