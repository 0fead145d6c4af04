"""Synchronised norms start equal to the norms that they replace; test_processes.py trains them."""

import torch
from torch import nn

from detector.backbone import ResNet
from detector.folding import FoldingConv2d
from detector.training.sync_norm import SyncBatchNorm, synchronise_norms


def test_a_synchronised_norm_is_the_one_that_was_there() -> None:
    """It keeps the weights, statistics and settings of a pretrained norm, and what is frozen."""
    norm = nn.BatchNorm2d(3, momentum=0.3, eps=1e-3)
    with torch.no_grad():
        for number, tensor in enumerate(
            (norm.weight, norm.bias, norm.running_mean, norm.running_var), start=2
        ):
            assert tensor is not None
            tensor.copy_(torch.arange(3) + number)
    norm.weight.requires_grad_(False)
    network = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), norm))
    before, x = (
        {name: tensor.clone() for name, tensor in network.state_dict().items()},
        torch.randn(2, 3, 4, 4),
    )
    expected = network.eval()(x)
    synchronise_norms(network, torch.device("cpu"))
    assert network.state_dict().keys() == before.keys()
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())
    torch.testing.assert_close(network.eval()(x), expected)
    (made,) = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert isinstance(made, SyncBatchNorm) and (made.momentum, made.eps) == (0.3, 1e-3)
    assert [parameter.requires_grad for parameter in made.parameters()] == [False, True]


def test_what_is_not_trained_stays_folded() -> None:
    """Norms of frozen stages do not look at batches; of frozen norms there is nothing to synchronise."""
    for norm, frozen_stages, folded in (("frozen", 0, 20), ("batch", 2, 5), ("batch", 0, 0)):
        backbone = ResNet("resnet18", norm, pretrained=False, frozen_stages=frozen_stages)
        synchronise_norms(backbone, torch.device("cpu"))
        convolutions = [one for one in backbone.modules() if isinstance(one, FoldingConv2d)]
        synchronised = [one for one in backbone.modules() if isinstance(one, SyncBatchNorm)]
        assert len(convolutions) == 20
        assert len([one for one in convolutions if one._norm]) == folded, (norm, frozen_stages)
        assert len(synchronised) == (0 if norm == "frozen" else 20 - folded)
