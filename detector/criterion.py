"""Head outputs + gt boxes -> named losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.matcher import Matches
from detector.objectives import Objective, Positives
from detector.retinanet import Outputs


@dataclass(frozen=True)
class GroundTruth:
    """The gt boxes of a batch, padded to the same number G per image."""

    boxes: Tensor  # float32 [B, G, 4], xyxy pixels of the network's input
    labels: Tensor  # int64 [B, G]
    valid: Tensor  # bool [B, G], False for padding
    ignore: Tensor  # bool [B, G], True for regions that are neither object nor background


Matching = Callable[[Outputs, GroundTruth], Matches]


@dataclass(frozen=True)
class Matched:
    """The network's outputs for a batch, with their targets."""

    logits: Tensor  # [B, N, C]
    targets: Tensor  # int8 [B, N, C] in {-1, 0, 1}
    positives: Positives


@dataclass(frozen=True)
class Losses:
    """The parts of the loss by name, each already weighted, and statistics of the batch."""

    parts: dict[str, Tensor]
    positives: Tensor  # number of positive anchors in the batch
    ranked_share: Tensor | None = None  # see `ranked.ranked_share`; only if requested

    @property
    def total(self) -> Tensor:
        return torch.stack(list(self.parts.values())).sum()

    def detach(self) -> "Losses":
        parts = {name: value.detach() for name, value in self.parts.items()}
        return replace(self, parts=parts)


class Criterion:
    """Matches anchors with gt boxes and computes the losses.

    Args:
        matching: matches the anchors of head outputs with gt boxes.
        objective: computes the losses from logits, targets in {-1, 0, 1} and the positives' boxes.
        ranked_share: computes the ranked share from logits and targets, for objectives that rank.
    """

    def __init__(
        self,
        matching: Matching,
        objective: Objective,
        ranked_share: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.matching = matching
        self.objective = objective
        self.ranked_share = ranked_share

    def match(self, outputs: Outputs, gt: GroundTruth) -> Matched:
        """Class targets, and the positives with their gt boxes and anchors."""
        matches = self.matching(outputs, gt)
        targets, image, anchor = class_targets(matches, gt.labels, outputs.logits.shape[2])
        positives = Positives(
            outputs.deltas_of(image, anchor).float(),
            gt.boxes[image, matches.gt_index[image, anchor]],
            outputs.anchors[anchor],
        )
        return Matched(outputs.logits, targets, positives)

    def __call__(self, batches: Sequence[Matched], measure: bool = False) -> Losses:
        """The losses of several batches as if they were one; image sizes may differ between them.

        Args:
            measure: also compute the ranked share, which synchronises with the device.
        """
        logits, targets, positives = batches[0].logits, batches[0].targets, batches[0].positives
        if len(batches) > 1:
            logits = torch.cat([one.logits.flatten(0, 1) for one in batches])  # [M, C]
            targets = torch.cat([one.targets.flatten(0, 1) for one in batches])
            parts_of = zip(*(one.positives for one in batches), strict=True)
            positives = Positives(*(torch.cat(part) for part in parts_of))
        parts = self.objective(logits, targets, positives)
        share = self.ranked_share(logits, targets) if measure and self.ranked_share else None
        return Losses(parts, logits.new_full((), len(positives.deltas), dtype=torch.int64), share)


def class_targets(matches: Matches, labels: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Targets int8 [B, N, C] in {-1, 0, 1}, and image and anchor index of the P positives.

    A positive anchor is 1 in the column of its gt's class and 0 in the others; an ignored one is -1
    in all. labels int64 [B, G].
    """
    image, anchor = (matches.status == 1).nonzero(as_tuple=True)
    targets = matches.status.clamp(max=0)[..., None].repeat(1, 1, classes)
    targets[image, anchor, labels[image, matches.gt_index[image, anchor]]] = 1
    return targets, image, anchor
