"""Box errors of the positive anchors; their mean is the box loss."""

from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from detector.boxes import decode, encode


def smooth_l1_errors(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, std: Tensor, beta: float) -> Tensor:
    """Smooth-L1 between predicted and target deltas of each positive, averaged over its four coordinates.

    deltas, gt_boxes, anchors [P, 4], std [4] -> [P]. Their mean is the objective that the AP-loss
    paper's code optimises (it logs four times as much).
    """
    wanted = encode(gt_boxes, anchors, std)
    return F.smooth_l1_loss(deltas, wanted, beta=beta, reduction="none").mean(dim=1)


def giou_errors(deltas: Tensor, gt_boxes: Tensor, anchors: Tensor, std: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of each positive's decoded and gt box, in [0, 2].

    deltas, gt_boxes, anchors [P, 4], std [4] -> [P].
    """
    return generalized_box_iou_loss(decode(deltas, anchors, std), gt_boxes)
