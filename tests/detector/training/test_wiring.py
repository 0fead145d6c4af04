"""Code that was added and does not fit in is reported in one line before the training."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.backbone import ResNet
from detector.builders.losses import build_criterion
from detector.builders.network import build_model
from detector.criterion import Criterion
from detector.losses import Exchange
from detector.retinanet import RetinaNet
from detector.training.trainer import Trainer
from detector.training.wiring import check_wiring
from errors import InputError
from tests.builders import small_coco
from tests.runs import tiny_config


def parts(tmp_path: Path, *words: str) -> tuple[RetinaNet, Criterion]:
    config = tiny_config(tmp_path, tmp_path / "run", *words)
    criterion = build_criterion(config, torch.device("cpu"), Exchange())
    return build_model(config.model, 3, pretrained=False).train(), criterion


@pytest.mark.parametrize(
    "words",
    [
        *((f"loss.name={name}",) for name in ("ap", "rank_sort", "focal", "ce_ohem")),
        ("loss.name=alrp", "loss.box=giou", "loss.class_by_class=true"),
        ("matcher.name=atss", "model.p6_from=p5"),
        ("model.norm=group", "model.head_norm=group"),
        ("model.frozen_stages=2", "loss.box=giou"),
    ],
)
def test_all_that_can_be_configured_fits_and_is_left_as_it_was(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    model, criterion = parts(tmp_path, *words)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_wiring(model, criterion)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert not model.backbone._forward_hooks
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def gives(change: Callable[[list[Tensor]], list[Tensor]]) -> Callable[[RetinaNet], None]:
    def alter(model: RetinaNet) -> None:
        forward = model.backbone.forward
        model.backbone.forward = lambda x: change(forward(x))  # type: ignore[method-assign]

    return alter


def declares(*channels: int) -> Callable[[RetinaNet], None]:
    def alter(model: RetinaNet) -> None:
        model.backbone.channels = list(channels)

    return alter


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (gives(lambda maps: maps[:2]), r"ResNet returns maps of .* they should be"),
        (gives(lambda maps: [*maps, maps[-1]]), r"returns maps of"),
        (gives(lambda maps: [map_[..., ::2, ::2] for map_ in maps]), r"\[1, 16, 4, 4\].* strides of 8, 16"),
        (
            gives(lambda maps: dict(enumerate(maps))),
            r"returns dict; must return a list of the maps C3, C4 and C5",
        ),
        (gives(lambda maps: maps[2]), r"returns Tensor; must return a list"),
        (declares(64, 128, 256), r"channels=\[64, 128, 256\]"),
        (
            declares(64, 128, 256, 512),
            r"declares channels=\[64, 128, 256, 512\]; must be those of C3, C4 and C5",
        ),
    ],
)
def test_a_backbone_that_is_not_what_it_says_is_named(
    tmp_path: Path, alter: Callable[[RetinaNet], None], said: str
) -> None:
    model, criterion = parts(tmp_path)
    alter(model)
    with pytest.raises(InputError, match=said):
        check_wiring(model, criterion)
    assert model.training and not model.backbone._forward_hooks


def test_a_weight_that_nothing_depends_on_is_told_and_ends_several_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One process can train with it, and may have for long; two would wait for its gradient."""
    model, criterion = parts(tmp_path)
    model.backbone.classifier = nn.Linear(512, 10)
    said = r"reaches 2 of \d+ trained weights, such as backbone\.classifier\.weight: remove"
    check_wiring(model, criterion)
    assert re.search(said, caplog.text)
    with pytest.raises(InputError, match=said):
        check_wiring(model, criterion, processes=2)
    model.backbone.classifier.requires_grad_(False)
    check_wiring(model, criterion, processes=2)


def only_in_training(model: RetinaNet) -> None:
    model.backbone.aux = nn.Conv2d(64, 64, 1)
    forward, backbone = model.backbone.forward, model.backbone

    def other(x: Tensor) -> list[Tensor]:
        c3, c4, c5 = forward(x)
        return [c3, c4, nn.functional.dropout(backbone.aux(c5)) if backbone.training else c5]

    model.backbone.forward = other  # type: ignore[method-assign]


def standardises(model: RetinaNet) -> None:
    forward = model.backbone.forward

    def other(x: Tensor) -> list[Tensor]:
        spread, mean = torch.std_mean(x, (2, 3), keepdim=True)
        return forward((x - mean) / spread)

    model.backbone.forward = other  # type: ignore[method-assign]


def not_finite(model: RetinaNet) -> None:
    """As from a checkpoint: the first step reports it, with its images."""
    with torch.no_grad():
        next(model.class_head.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("alter", [only_in_training, standardises, not_finite])
def test_what_a_training_can_do_with_is_taken(tmp_path: Path, alter: Callable[[RetinaNet], None]) -> None:
    model, criterion = parts(tmp_path)
    alter(model)
    state = torch.get_rng_state()
    check_wiring(model, criterion, processes=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        (lambda loss: loss.detach(), r"no gradient of the loss reaches class_head: a part of the loss must"),
        (lambda loss: loss.expand(4, 3), r"part 'classification' of the loss .* got \[4, 3\]"),
        (float, r"part 'classification' of the loss .* got float"),
    ],
)
def test_a_loss_that_cannot_teach_is_named(
    tmp_path: Path, altered: Callable[[Tensor], Any], said: str
) -> None:
    model, criterion = parts(tmp_path)
    objective = criterion.objective

    def other(*given: Any) -> dict[str, Any]:
        found = objective(*given)
        return found | {"classification": altered(found["classification"])}

    criterion.objective = other
    with pytest.raises(InputError, match=said):
        check_wiring(model, criterion)


def test_a_training_is_refused_before_it_leaves_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ResNet.forward
    monkeypatch.setattr(ResNet, "forward", lambda self, x: forward(self, x)[:2])
    root = small_coco(tmp_path / "set")
    with pytest.raises(InputError, match="the backbone ResNet returns maps of"):
        Trainer(tiny_config(root, tmp_path / "run"), "test")
    assert not (tmp_path / "run").exists()
