"""Two looks at an image, averaged: checked with anchors that are matched by their positions."""

from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import train
from detector.builders.network import build_model
from detector.config.file import apply_overrides, parse_config
from detector.mirror import look_twice
from detector.predictor import Detector
from detector.retinanet import HeadOutputs, RetinaNet
from tests.builders import TINY_MODEL, small_coco
from tests.runs import call


@pytest.fixture(scope="module")
def model() -> RetinaNet:
    config = parse_config(apply_overrides({}, list(TINY_MODEL)), "the test")
    torch.manual_seed(0)
    model = build_model(config.model, 3, pretrained=False).eval()
    for head in (model.class_head, model.box_head):
        torch.nn.init.normal_(head.output.weight, std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(64, 256), (96, 160), (160, 32)])
def test_both_looks_are_averaged_at_anchors_that_mirror_each_other(
    model: RetinaNet, height: int, width: int
) -> None:
    """Images of two sizes, with padding, which is on the left in the mirrored image."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, height, width), dtype=np.uint8))
    sizes = torch.tensor([[height, width], [height - 9, width - 13]])
    found = look_twice(model, images, sizes)

    wide = -(-width // 128) * 128
    x = torch.zeros(2, 3, height, wide)
    for i, (h, w) in enumerate(sizes.tolist()):
        x[i, :, :h, :w] = model.normalise(images[i : i + 1, :, :h, :w], sizes[i : i + 1])[0]
    one, other = model.look(x), model.look(x.flip(3))
    assert torch.equal(found.anchors, one.anchors)
    key = {tuple(box): row for row, box in enumerate(one.anchors.tolist())}
    alone = 0
    for row, (x0, y0, x1, y1) in enumerate(one.anchors.tolist()):
        twin = key.get((wide - x1, y0, wide - x0, y1))
        logits, deltas = one.logits[:, row], one.deltas[:, row]
        if twin is None:
            alone += 1
            assert x0 + x1 == 0  # the leftmost
        else:
            turned = other.deltas[:, twin].clone()
            turned[:, 0] = -turned[:, 0]
            logits, deltas = (logits + other.logits[:, twin]) / 2, (deltas + turned) / 2
        torch.testing.assert_close(found.logits[:, row], logits)
        torch.testing.assert_close(found.deltas[:, row], deltas)
    assert 0 < alone < len(one.anchors) / (2 if wide > 128 else 1)


def test_evaluation_and_prediction_look_twice_where_they_are_told_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_coco(tmp_path / "set", 4)
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}\ntrain: {epochs: 1}\n")
    assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=tmp_path).code == 0
    assert call(evaluate.main, "run", "eval.flip=true", cwd=tmp_path).code == 0
    assert "eval.flip=true: scores and thresholds are calibrated for eval.flip=false" in caplog.text
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    once, twice = (
        Detector.load(tmp_path / "run", "cpu", [f"eval.flip={flip}"])(pixels) for flip in ("false", "true")
    )
    assert len(once) == len(twice) > 10
    assert not np.allclose(once.scores, twice.scores)


class HalfPrecision:
    """A network whose two bfloat16 logits are neighbouring numbers: their mean lies in between."""

    def normalise(self, images, sizes):
        return images.float()

    def look(self, images):
        counts = tuple((128 // stride) ** 2 for stride in (8, 16, 32, 64, 128))
        value, n = (4.0 if images[0, 0, 0, 0] else 4.03125), sum(counts)
        logits = torch.full((1, n, 1), value).bfloat16()
        return HeadOutputs(logits, torch.zeros(1, n, 4).bfloat16(), torch.zeros(n, 4), counts)


@torch.no_grad()
def test_two_looks_in_bf16_have_a_mean_in_float32() -> None:
    images = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    images[..., :64] = 1
    logits = look_twice(HalfPrecision(), images, torch.tensor([[128, 128]])).logits
    assert logits.dtype == torch.float32 and logits[0, 1].item() == 4.015625
