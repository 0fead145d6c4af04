"""A model prepared for inference against the original model."""

from pathlib import Path

import pytest
import torch
from torch import nn

from detector.builders.network import build_model
from detector.evaluation.inference import for_inference
from detector.folding import running_statistics
from tests.runs import tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "words",
    [
        ("model.norm=frozen", "model.head_norm=none"),
        ("model.norm=batch", "model.head_norm=group"),
        ("model.norm=group", "model.p6_from=c5"),
    ],
)
def test_a_model_made_ready_gives_the_same_bits(words: tuple[str, ...], amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    config = tiny_config(Path(), Path(), "model.frozen_stages=0", *words)
    model = build_model(config.model, 3, pretrained=False).to(memory_format=torch.channels_last).train()
    for statistic in running_statistics(model):  # as after training
        if statistic.is_floating_point():
            statistic.add_(torch.rand_like(statistic), alpha=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ready = for_inference(model, amp)
    assert model.training
    assert not any(parameter.requires_grad for parameter in ready.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    images = torch.randint(256, (2, 3, 96, 128), dtype=torch.uint8)
    sizes = torch.tensor([[96, 128], [90, 100]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp is not None):
        mine, its = ready(images, sizes), model.eval()(images, sizes)
    assert its.logits.std() > 0
    for one, other in ((mine.logits, its.logits), (mine.deltas, its.deltas)):
        assert torch.equal(one, other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if amp is not None:  # all convolutions are cast in advance except P6 and P7
        convolutions = [m for m in ready.modules() if isinstance(m, nn.Conv2d)]
        assert sum(m.weight.dtype == torch.float32 for m in convolutions) == 2
