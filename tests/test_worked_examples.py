"""docs/extending.md: its examples are built as written there, and pass the tests given beside them."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from detector import backbone, losses
from errors import InputError
from tests.builders import write_image
from tests.detector.test_backbone import picture

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def block_with(words: str) -> str:
    """The one block of Python on the page that contains these words."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    return block


def module_of(block: str, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that can be imported by its name while the test lasts."""
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(block, module.__dict__)
    return module


def test_the_loss_passes_its_test(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(block_with("def poly_focal_loss("), "detector.losses.poly", monkeypatch)
    monkeypatch.setattr(losses, "poly_focal_loss", module.poly_focal_loss, raising=False)
    names: dict[str, Any] = {}
    exec(block_with("def test_poly_focal_loss_is_its_definition("), names)
    names["test_poly_focal_loss_is_its_definition"]()


def test_the_backbone_passes_its_test_and_can_be_part_of_the_network() -> None:
    names = vars(backbone).copy()
    exec(block_with("class MobileNet("), names)
    names |= {
        "torchvision": torchvision,
        "create_feature_extractor": create_feature_extractor,
        "picture": picture,
    }
    exec(block_with("def test_mobilenets_features_equal_torchvisions("), names)
    names["test_mobilenets_features_equal_torchvisions"]()
    for norm in ("batch", "group", "frozen"):
        body = names["MobileNet"]("mobilenet_v2", norm, pretrained=False, frozen_stages=2).train()
        maps = body(picture(0))
        assert [m.shape[1:] for m in maps] == [
            (c, 64 // s, 96 // s) for c, s in zip(body.channels, (8, 16, 32), strict=True)
        ]
        assert not any(p.requires_grad for stage in body.stages[:2] for p in stage.parameters())


def test_the_data_source_passes_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_of(block_with("def load_csv("), "data.csv_table", monkeypatch)
    names: dict[str, Any] = {}
    exec(block_with("def test_boxes_arrive_as_they_are_written("), names)
    for name in ("a.png", "b.png"):  # what its fixture writes
        write_image(tmp_path / name)
    names["test_boxes_arrive_as_they_are_written"](tmp_path)
    refused = names["test_what_is_wrong_is_said_in_one_line"]
    (cases,) = (mark.args[1] for mark in refused.pytestmark)
    assert len(cases) == 5
    for text, said in cases:
        refused(tmp_path, text, said)
    assert names["InputError"] is InputError
