"""Convolutions of feature maps computed only at the few locations whose results are needed.

The box loss needs only the positive anchors, a few hundred of a hundred thousand. With k 3x3 convolutions the
head's output at a location depends only on the k locations to each side. So each convolution is computed only
where the next one reads it, as one matrix product over the rows.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Masks = list[Tensor]  # bool [B, H, W] for each pyramid level


def surroundings(wanted: Masks, convolutions: int) -> list[Masks]:
    """The locations that a stack of 3x3 convolutions reads and computes: its inputs first, `wanted` last."""
    masks = [wanted]
    for _ in range(convolutions):
        masks.append([F.max_pool2d(mask.float(), 3, 1, 1).bool() for mask in masks[-1]])
    return masks[::-1]


def convolved_rows(
    features: Sequence[Tensor], convolutions: Sequence[nn.Conv2d], masks: list[Masks]
) -> Tensor:
    """Zero-padded 3x3 convolutions with ReLU between them, computed only at the masked locations.

    Args:
        features: [B, C, H, W] for each pyramid level.
        masks: of `surroundings`, for as many convolutions.

    Returns:
        [n, channels]: the last convolution at each location of the last masks, level by level and within a
        level in the order of its elements.
    """
    rows = torch.cat([x.permute(0, 2, 3, 1)[mask] for x, mask in zip(features, masks[0], strict=True)])
    for i, convolution in enumerate(convolutions):
        looked_at = torch.cat(
            [
                F.pad(number, (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)[mask].flatten(1)
                for number, mask in zip(numbered(masks[i]), masks[i + 1], strict=True)
            ]
        )  # [n, 9], 0 beyond the edge
        rows = F.pad(rows if i == 0 else rows.relu(), (0, 0, 1, 0))  # row 0 is the padding
        windows = rows.index_select(0, looked_at.flatten()).view(len(looked_at), 9 * rows.shape[1])
        rows = F.linear(windows, convolution.weight.permute(0, 2, 3, 1).flatten(1), convolution.bias)
    return rows


def numbered(masks: Masks) -> list[Tensor]:
    """Number the marked locations of all levels from 1 in the order of their rows; 0 elsewhere. int64."""
    levels, last = [], 0
    for mask in masks:
        number = mask.flatten().cumsum(0).view(mask.shape) + last
        last = int(number.max())
        levels.append(number * mask)
    return levels
