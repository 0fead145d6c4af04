"""Box losses over the positive anchors."""

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detector.boxes import decode, encode


def smooth_l1_loss(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, std: Tensor, beta: float) -> Tensor:
    """Mean smooth-L1 between predicted and wanted deltas, over all four coordinates.

    deltas, gt_boxes, anchors [P, 4], std [4] -> scalar; 0 for P = 0. This is the objective that the
    AP-loss paper's code optimises (it logs four times as much).
    """
    wanted = encode(gt_boxes, anchors, std)
    return F.smooth_l1_loss(deltas, wanted, beta=beta, reduction="sum") / max(1, deltas.numel())


def giou_loss(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, std: Tensor) -> Tensor:
    """Mean 1 - GIoU (Rezatofighi et al., CVPR 2019) of decoded and gt boxes.

    deltas, gt_boxes, anchors [P, 4], std [4] -> scalar; 0 for P = 0.
    """
    return giou_errors(deltas, gt_boxes, anchors, std).sum() / max(1, len(deltas))


def giou_errors(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, std: Tensor) -> Tensor:
    """1 - GIoU of each positive, in [0, 2]: deltas, gt_boxes, anchors [P, 4], std [4] -> [P]."""
    return generalized_box_iou_loss(decode(deltas, anchors, std), gt_boxes)
