"""Class-wise NMS of a batch, in the three forms that graphs need: PyTorch, TorchScript and ONNX.

All images of a batch have the same number of candidates, best first, and the result is a mask of the same
shape: no size depends on the detections.
"""

from typing import Any

import torch
from torch import Tensor

from detector.postprocess import nms_of_classes


def keep_best(
    boxes: Tensor, ranks: Tensor, labels: Tensor, valid: Tensor, classes: int, iou_threshold: float, most: int
) -> Tensor:
    """Which candidates NMS keeps, as in `postprocess.detect`. TorchScript compiles this very function.

    Args:
        boxes: float32 [B, K, 4], best first.
        ranks: int64 [K], K to 1.
        labels: int64 [B, K].
        valid: bool [B, K]; invalid candidates are neither kept nor suppress others.
        most: maximum number per class; used only by ONNX's operator.

    Returns:
        bool [B, K].
    """
    keep = torch.zeros_like(valid)
    for i in range(labels.shape[0]):
        at = valid[i].nonzero()[:, 0]
        kept = nms_of_classes(boxes[i, at], ranks[at], labels[i, at], iou_threshold)
        keep[i, at[kept]] = True
    return keep


keep_best_op = torch.library.custom_op("aploss::keep_best", keep_best, mutates_args=())


@keep_best_op.register_fake
def _(
    boxes: Tensor, ranks: Tensor, labels: Tensor, valid: Tensor, classes: int, iou_threshold: float, most: int
) -> Tensor:
    return torch.empty_like(valid)


def onnx_translations() -> dict[Any, Any]:
    """The ONNX form of the operator above, for torch.onnx.export's `custom_translation_table`."""
    import onnxscript
    from onnx import TensorProto

    op: Any = onnxscript.opset18

    def keep_best_in_onnx(
        boxes: Any, ranks: Any, labels: Any, valid: Any, classes: int, iou_threshold: float, most: int
    ) -> Any:
        """ONNX's operator takes a score per class: the rank for the candidate's class, 0 for the others."""
        wanted = op.Reshape(op.Constant(value_ints=list(range(classes))), op.Constant(value_ints=[1, -1, 1]))
        middle = op.Constant(value_ints=[1])
        mine = op.And(op.Equal(op.Unsqueeze(labels, middle), wanted), op.Unsqueeze(valid, middle))
        zero = op.Constant(value_floats=[0.0])
        scores = op.Where(mine, op.Cast(ranks, to=TensorProto.FLOAT), zero)  # [B, C, K]
        chosen = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            zero,
        )  # [S, 3] of image, class, candidate
        at = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)
        rows = op.Shape(chosen, start=0, end=1)
        ones = op.Expand(op.Constant(value_floats=[1.0]), rows)
        none = op.ConstantOfShape(op.Shape(valid))
        return op.Cast(op.ScatterND(none, at, ones), to=TensorProto.BOOL)

    return {torch.ops.aploss.keep_best.default: keep_best_in_onnx}
