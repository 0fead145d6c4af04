"""The detector as one graph of tensor operations: images in, padded detections out.

Every size is taken from a tensor at run time, and nothing branches on one, so that the recordings of
torch.export and torch.jit.trace hold for any number and size of images. The outputs equal those of
`detector.postprocess.detect`.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.sample import SIZE_DIVISOR
from detector.boxes import decode, is_empty
from detector.config import EvalConfig
from detector.export.probabilities import Probabilities
from detector.folding import plain_convolutions
from detector.retinanet import RetinaNet
from detector.soft_nms import soft_nms

# boxes [B, K, 4], ranks [K], labels [B, K], valid [B, K], classes, IoU threshold, most per class -> [B, K]
Suppression = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, int], Tensor]


@dataclass(frozen=True)
class _Level:
    """One pyramid level with n anchors, ordered by row, column, and anchor of the location."""

    logits: Tensor  # [B, n * C]
    deltas: Tensor  # [B, n * 4]
    cells: Tensor  # float32 [A, 4], the anchors of a location centred on the origin, xyxy pixels
    columns: int
    stride_y: int  # pixels
    stride_x: int

    def anchors(self, index: Tensor) -> Tensor:
        """index int64 [...] -> float32 [..., 4], xyxy pixels."""
        count = self.cells.shape[0]
        location = index // count
        row = location // self.columns
        column = location - row * self.columns  # ONNX has no remainder by a dynamic size
        x, y = column * self.stride_x, row * self.stride_y
        return self.cells[index % count] + torch.stack((x, y, x, y), dim=-1)


class HeadsGraph(nn.Module):
    """Normalised images -> the outputs of the heads for every anchor.

    Args:
        model: will be copied.
    """

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        network = deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        plain_convolutions(network)
        self.backbone = network.backbone
        self.pyramid = network.pyramid
        self.class_head = network.class_head
        self.box_head = network.box_head
        for level, cells in enumerate(network.anchor_generator.cells):
            self.register_buffer(f"cells_{level}", cells)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images float32 [B, 3, H, W] -> logits [B, N, C], deltas [B, N, 4], anchors [N, 4]."""
        logits, deltas, anchors = [], [], []
        for level in self.levels(images):
            logits.append(level.logits.unflatten(1, (-1, self.class_head.outputs)))
            deltas.append(level.deltas.unflatten(1, (-1, 4)))
            # cumsum of a tensor, as a trace would fix the device of arange.
            anchors.append(level.anchors(torch.ones_like(deltas[-1][0, :, 0]).long().cumsum(0) - 1))
        return torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(anchors)

    def levels(self, images: Tensor) -> list[_Level]:
        """The pyramid levels of images, which are padded to a multiple of 32 px with 0, the mean."""
        below, right = (_up_to_multiple(side) - side for side in (images.shape[2], images.shape[3]))
        images = F.pad(images, (0, right, 0, below))
        features = self.pyramid(self.backbone(images))
        return [
            _Level(
                self.class_head.maps(x).flatten(1),
                self.box_head.maps(x).flatten(1),
                getattr(self, f"cells_{level}"),
                columns=x.shape[3],
                stride_y=images.shape[2] // x.shape[2],
                stride_x=images.shape[3] // x.shape[3],
            )
            for level, x in enumerate(features)
        ]


class DetectionGraph(nn.Module):
    """Pixels -> detections, best first, padded to a fixed number.

    Args:
        model: will be copied.
        box_std: float [4], as in `boxes.decode`.
        probabilities: logits and labels -> scores.
        suppress: NMS in a form that the exporter supports; see `suppression.py`.
    """

    def __init__(
        self,
        model: RetinaNet,
        box_std: Tensor,
        probabilities: Probabilities,
        settings: EvalConfig,
        suppress: Suppression,
    ) -> None:
        super().__init__()
        self.heads = HeadsGraph(model)
        self.probabilities = probabilities
        self.settings = settings
        self.suppress = suppress
        self.classes = model.class_head.outputs
        candidates = len(model.anchor_generator.cells) * settings.topk_candidates
        self.most = min(settings.detections_per_img, candidates)
        self.scale: Tensor
        self.shift: Tensor
        self.box_std: Tensor
        self.four: Tensor
        for name, values in (("scale", model.scale), ("shift", model.shift), ("box_std", box_std)):
            self.register_buffer(name, values.clone())
        self.register_buffer("four", torch.arange(4))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images uint8 [B, 3, H, W] RGB, without padding.

        Returns:
            boxes float32 [B, D, 4] xyxy in pixels of `images`, scores float32 [B, D], labels int64 [B, D],
            and the number of detections in each image, int64 [B]. The rest of the D have boxes and scores
            of 0 and the label -1.
        """
        height, width = images.shape[2], images.shape[3]
        levels = self.heads.levels(images.to(self.scale.dtype) * self.scale + self.shift)
        best = [self._best(level) for level in levels]
        logits, boxes, labels = (torch.cat(parts, 1) for parts in zip(*best, strict=True))
        logits, order = logits.sort(dim=1, descending=True)  # [B, K]
        labels = labels.gather(1, order)
        boxes = _rows(boxes, order)
        x0, y0, x1, y1 = boxes.unbind(-1)
        clipped = (x0.clamp(0, width), y0.clamp(0, height), x1.clamp(0, width), y1.clamp(0, height))
        boxes = torch.stack(clipped, dim=-1)  # [B, K, 4]
        logits = logits.masked_fill(is_empty(boxes), -math.inf)

        thin_out = self._soft_nms if self.settings.nms == "soft" else self._hard_nms
        chosen, left, real = thin_out(boxes, logits, labels)  # each [B, D]
        labels = labels.gather(1, chosen)
        # Sort again, since each class has its own calibration; padding goes last.
        scores, order = self.probabilities(left, labels).masked_fill(~real, -1).sort(dim=1, descending=True)
        real = scores >= 0
        return (
            _rows(boxes, chosen.gather(1, order)) * real[..., None],
            scores.clamp(min=0),
            labels.gather(1, order).where(real, -1),
            real.sum(1),
        )

    def _hard_nms(self, boxes: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From candidates, best first: indices of D, their logits, and whether they are detections."""
        s = self.settings
        valid = logits > -math.inf
        if s.score_threshold > 0:
            valid = valid & (logits.double().sigmoid() > s.score_threshold)
        ranks = torch.ones_like(labels[0]).flip(0).cumsum(0).flip(0)  # K to 1
        wanted = s.detections_per_img
        keep = self.suppress(boxes, ranks, labels, valid, self.classes, s.nms_threshold, wanted)
        left, chosen = (ranks * keep).topk(self.most, dim=1)
        return chosen, logits.gather(1, chosen), left > 0

    def _soft_nms(self, boxes: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same by Soft-NMS; the logits are those of the remaining scores."""
        chosen, log_scores = soft_nms(boxes, logits.double(), labels, self.most)
        threshold = self.settings.score_threshold
        real = log_scores.exp() > threshold if threshold > 0 else log_scores > -math.inf
        return chosen, log_scores - (-log_scores.expm1()).log(), real

    def _best(self, level: _Level) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, boxes and labels of the best (anchor, class) pairs of a level.

        The number is the same for every image size; missing ones have a logit of minus infinity.
        """
        k = self.settings.topk_candidates
        logits, flat = F.pad(level.logits, (0, k), value=-math.inf).topk(k, dim=1)
        index = torch.where(logits > -math.inf, flat // self.classes, 0)  # [B, k]
        four = (index * 4)[..., None] + self.four  # [B, k, 4]
        deltas = level.deltas.gather(1, four.flatten(1)).unflatten(1, (k, 4))
        return logits, decode(deltas, level.anchors(index), self.box_std), flat % self.classes


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B, N, 4], index [B, K] -> [B, K, 4]."""
    return values.gather(1, index[..., None].expand(-1, -1, 4))


def _up_to_multiple(side: int) -> int:
    return (side + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR
