"""How the towers of the heads are initialised."""

import math

import pytest
import torch
from torch import nn

from detector.heads import Head


def test_towers_with_group_norm_start_as_he_et_al_want() -> None:
    torch.manual_seed(0)
    head = Head(64, 64, 2, 9, 4, norm="group")
    for layer in (head.tower[0], head.tower[3]):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert head.output.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(not layer.bias.any() for layer in head.modules() if isinstance(layer, nn.Conv2d))
