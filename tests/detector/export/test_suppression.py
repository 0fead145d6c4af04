"""NMS in every form keeps what torchvision's keeps, image by image and class by class."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from detector.export.formats import FORMATS
from detector.export.suppression import keep_best, keep_best_op, onnx_translations

CLASSES, THRESHOLD = 3, 0.4


def candidates(batch: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes that overlap a lot, a third of them invalid; the last image has no valid one."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, k, 2, generator=rng) * 60
    boxes = torch.cat((corner, corner + 5 + torch.rand(batch, k, 2, generator=rng) * 40), dim=-1)
    boxes[:, 1] = boxes[:, 0]  # equal boxes
    boxes[:, 2, 2:] = boxes[:, 2, :2]  # one without area
    labels = torch.randint(0, CLASSES, (batch, k), generator=rng)
    labels[:, 1] = labels[:, 0]
    valid = torch.rand(batch, k, generator=rng) > 0.33
    valid[-1] = False
    return boxes, torch.arange(k, 0, -1), labels, valid


def expected(boxes: Tensor, ranks: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    keep = torch.zeros_like(valid)
    for image in range(len(boxes)):
        for label in range(CLASSES):
            (mine,) = torch.where(valid[image] & (labels[image] == label))
            keep[image, mine[nms(boxes[image, mine], ranks[mine].float(), THRESHOLD)]] = True
    return keep


class Alone(nn.Module):
    """The operator and nothing else."""

    def forward(self, boxes: Tensor, ranks: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        return keep_best_op(boxes, ranks, labels, valid, CLASSES, THRESHOLD, 1000)


@pytest.mark.parametrize("batch", [1, 4])
def test_pytorch_and_torchscript(batch: int) -> None:
    given = candidates(batch, 200)
    limits = (CLASSES, THRESHOLD, 1000)
    assert torch.equal(keep_best(*given, *limits), expected(*given))
    assert torch.equal(FORMATS["torchscript"].suppress(*given, *limits), expected(*given))


def test_onnx() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    names = ["boxes", "ranks", "labels", "valid"]
    size = torch.export.Dim
    shapes: dict[str, Any] = {name: {0: size("batch"), 1: size("k", min=4)} for name in names}
    shapes["ranks"] = {0: shapes["boxes"][1]}
    program = torch.onnx.export(
        Alone().eval(), candidates(2, 50), input_names=names, output_names=["keep"], dynamo=True,
        verbose=False, opset_version=18, dynamic_shapes=shapes, custom_translation_table=onnx_translations(),
    )  # fmt: skip
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for batch, k in ((1, 200), (4, 200), (3, 30)):
        given = candidates(batch, k, seed=batch)
        (keep,) = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        assert np.array_equal(keep, expected(*given).numpy())
