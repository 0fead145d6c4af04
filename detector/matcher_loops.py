"""The IoU of all pairs of anchors and gt boxes on a CPU, in one pass where PyTorch takes fifteen.

The arithmetic follows `boxes.pairwise_iou` operation by operation, so all IoUs are bitwise identical.
losses/machine_code.py explains how the loops are compiled.
"""

import numpy as np

from detector.losses.machine_code import Array, compiled_loop

BLOCK = 1 << 11  # anchors that stay in the L1 cache while all gt boxes are compared with them

_TINY = np.finfo(np.float32).tiny


@compiled_loop
def match_image(
    anchors: Array,
    boxes: Array,
    objects: Array,
    best_anchor: bool,
    ious: Array,
    highest: Array,
    best_iou: Array,
    best_gt: Array,
    forced_iou: Array,
    forced_gt: Array,
) -> None:
    """Find the best gt box of each anchor, and the gt box (if any) of which it is a best anchor.

    If there are several of the latter, the one with the highest IoU; in a tie the first.

    Args:
        anchors: float32 [5, N], x0, y0, x1, y1 and area.
        boxes: float32 [G, 4]; objects: bool [G], the boxes that count.
        ious: float32 [BLOCK], scratch.
        highest: int32 [blocks of anchors + 1, G], scratch for the highest IoU of each gt box, per block and
            overall. Holds the bits of the floats, which sort like the floats: integer maxima vectorise.
        best_iou, forced_iou: float32 [N], zeros; best_gt, forced_gt: int32 [N], zeros.
    """
    bits, none = ious.view(np.int32), np.float32(0)
    blocks, of_all = len(highest) - 1, highest[-1]
    highest[:] = 0
    for forced in range(1 + best_anchor):
        some_ious, some_gts = (forced_iou, forced_gt) if forced else (best_iou, best_gt)
        for block in range(blocks):
            first = block * BLOCK
            some = anchors[:, first : first + BLOCK]
            x0, y0, x1, y1, size = some[0], some[1], some[2], some[3], some[4]
            iou, gt = some_ious[first:], some_gts[first:]
            for i in range(len(boxes)):
                if not objects[i]:
                    continue
                if forced and (of_all[i] == 0 or highest[block, i] < of_all[i]):
                    continue
                left, top, right, bottom = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
                own = (right - left) * (bottom - top)
                for k in range(len(size)):
                    width = max(min(right, x1[k]) - max(left, x0[k]), none)
                    height = max(min(bottom, y1[k]) - max(top, y0[k]), none)
                    union = own + size[k] - width * height
                    ious[k] = width * height / max(union, _TINY)
                if forced:
                    for k in range(len(size)):
                        if bits[k] == of_all[i] and ious[k] > iou[k]:
                            iou[k], gt[k] = ious[k], i
                else:
                    most = np.int32(0)
                    for k in range(len(size)):
                        better = ious[k] > iou[k]
                        iou[k] = ious[k] if better else iou[k]
                        gt[k] = np.int32(i) if better else gt[k]
                        most = max(most, bits[k])
                    highest[block, i] = most
                    of_all[i] = max(of_all[i], most)
