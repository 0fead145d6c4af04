"""Convolutions of feature maps at a few locations alone: those whose results somebody looks at.

The loss of the boxes looks at the positive anchors, a few hundred of a hundred thousand. What the head says
of them depends on their surroundings, and on nothing else: with k convolutions of 3x3, on k locations to each
side. So each convolution is asked for what the next one looks at, as one matrix product over the rows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Masks = list[Tensor]  # bool [B, H, W] for each pyramid level


def surroundings(wanted: Masks, convolutions: int) -> list[Masks]:
    """Which locations so many convolutions of 3x3 look at and give: their inputs first, `wanted` last."""
    masks = [wanted]
    for _ in range(convolutions):
        masks.append([F.max_pool2d(mask.float(), 3, 1, 1).bool() for mask in masks[-1]])
    return masks[::-1]


def convolved_rows(
    features: Sequence[Tensor], convolutions: Sequence[nn.Conv2d], masks: list[Masks]
) -> Tensor:
    """3x3 convolutions, padded by zeros and with a ReLU between them, where they are asked for.

    Args:
        features: [B, C, H, W] for each pyramid level.
        masks: of `surroundings`, for as many convolutions.

    Returns:
        [n, channels]: the last convolution at each location of the last masks, in the order of the levels
        and, in each, of its elements.
    """
    rows = torch.cat([x.permute(0, 2, 3, 1)[mask] for x, mask in zip(features, masks[0], strict=True)])
    for i, convolution in enumerate(convolutions):
        looked_at = torch.cat(
            [
                F.pad(number, (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)[mask].flatten(1)
                for number, mask in zip(numbered(masks[i]), masks[i + 1], strict=True)
            ]
        )  # [n, 9], 0 for what lies beyond the edge
        rows = F.pad(rows if i == 0 else rows.relu(), (0, 0, 1, 0))  # row 0 is the padding
        windows = rows.index_select(0, looked_at.flatten()).view(len(looked_at), 9 * rows.shape[1])
        rows = F.linear(windows, convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias)
    return rows


def numbered(masks: Masks) -> list[Tensor]:
    """The locations of all levels counted from 1 on, in the order of their rows, the others 0: int64."""
    levels, last = [], 0
    for mask in masks:
        number = mask.flatten().cumsum(0).view(mask.shape) + last
        last = int(number.max())
        levels.append(number * mask)
    return levels
