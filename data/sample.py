"""The records that travel: DetectionSet (a split on disk), Sample (one image), Batch."""

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A batch is padded to a multiple of the stride of C5, as in torchvision; P6 and P7 round up.
SIZE_DIVISOR = 32


_UNLISTED = -(2**62)  # and below: the ids of classes that a file does not list


def unlisted_id(k: int) -> int:
    """The k-th of the ids that stand for classes which a file does not list."""
    return _UNLISTED - k


def is_listed(category_id: int) -> bool:
    """Whether an id is one of the annotations."""
    return category_id > _UNLISTED


@dataclass(frozen=True)
class DetectionSet:
    """The annotations of a split, in flat arrays (lists of objects would be copied by every worker).

    The boxes of image i are the rows offsets[i] to offsets[i + 1].
    """

    files: NDArray[np.str_]  # [I] paths of the images
    image_ids: NDArray[np.int64]  # [I] as in the annotations
    sizes: NDArray[np.int64]  # [I, 2] height, width in pixels
    offsets: NDArray[np.int64]  # [I + 1]
    boxes: NDArray[np.float64]  # [M, 4] xyxy pixels, as annotated
    labels: NDArray[np.int64]  # [M] index into classes
    ignore: NDArray[np.bool_]  # [M] crowd regions, difficult objects
    areas: NDArray[np.float64]  # [M] as annotated (COCO's small / medium / large), else of the box
    annotation_ids: NDArray[np.int64]  # [M] coco: the id, voc: n-th object, yolo: the line; -1 without
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # of the classes, as in the annotations; see `is_listed`
    renumbered: bool = False  # the ids of images or categories are other ones in the annotations, or none

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """The row of each box's image, [M]."""
        return np.repeat(np.arange(len(self)), self.boxes_in_images)

    @property
    def boxes_in_images(self) -> NDArray[np.int64]:
        """How many boxes each image has, [I]."""
        return np.diff(self.offsets)

    def boxes_of(self, row: int) -> slice:
        """Where the boxes of an image are."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def row_of(self, box: int) -> int:
        """The row of one box's image."""
        return int(self.offsets.searchsorted(box, side="right")) - 1

    def with_boxes(self, kept: NDArray[np.bool_]) -> "DetectionSet":
        """The same images, with those of the boxes alone: [M]."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
        names = ("boxes", "labels", "ignore", "areas", "annotation_ids")
        return replace(self, offsets=ends[self.offsets], **{n: getattr(self, n)[kept] for n in names})

    def digest(self) -> str:
        """What tells whether two sets are of the same images, by name and size, with the same boxes."""
        names = (Path(file).name.encode(errors="surrogatepass") for file in self.files.tolist())
        digest = hashlib.sha256(b"\0".join(names))
        for column in (self.sizes, self.offsets, self.boxes, self.labels, self.ignore):
            digest.update(column.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One augmented image and its boxes."""

    index: int  # row in the DetectionSet
    wanted: int  # the row that was asked for: another one if its image could not be read
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    original_size: tuple[int, int]  # height, width in the file
    boxes: NDArray[np.float32]  # [M, 4] xyxy pixels of `image`
    labels: NDArray[np.int64]  # [M]
    ignore: NDArray[np.bool_]  # [M]

    @staticmethod
    def without_boxes(index: int, image: NDArray[np.uint8], original_size: tuple[int, int]) -> "Sample":
        """An image of which nothing is known; arguments as the attributes."""
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return Sample(index, index, image, original_size, boxes, labels, np.zeros(0, np.bool_))


@dataclass(frozen=True)
class Batch:
    """Images padded to one size, boxes padded to one count."""

    indices: Tensor  # int64 [B], rows in the DetectionSet
    wanted: Tensor  # int64 [B], the rows that were asked for
    images: Tensor  # uint8 [B, 3, H, W] RGB, channels last in memory
    sizes: Tensor  # int64 [B, 2], height and width without padding
    original_sizes: Tensor  # int64 [B, 2], height and width in the file
    boxes: Tensor  # float32 [B, G, 4]
    labels: Tensor  # int64 [B, G]
    valid: Tensor  # bool [B, G]
    ignore: Tensor  # bool [B, G]

    def _map(self, function: Any) -> "Batch":
        return Batch(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; the copy does not block where the memory is pinned."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def share_memory(self) -> "Batch":
        """The same batch where other processes see it. Raises RuntimeError: there is no room for it."""
        return self._map(lambda t: t.share_memory_())

    def pin_memory(self) -> "Batch":
        """Called by DataLoader(pin_memory=True)."""
        return self._map(lambda t: t.pin_memory())


def collate(samples: list[Sample]) -> Batch:
    """Samples -> Batch: images padded at the right and bottom with 0, to a multiple of 32 px."""
    sizes = torch.tensor([s.image.shape[:2] for s in samples])
    height, width = ((sizes.amax(0) + SIZE_DIVISOR - 1) // SIZE_DIVISOR * SIZE_DIVISOR).tolist()
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8)
    most = max(len(s.boxes) for s in samples)
    boxes = torch.zeros(len(samples), most, 4)
    labels = torch.zeros(len(samples), most, dtype=torch.int64)
    valid = torch.zeros(len(samples), most, dtype=torch.bool)
    ignore = torch.zeros(len(samples), most, dtype=torch.bool)
    for i, sample in enumerate(samples):
        h, w = sample.image.shape[:2]
        count = len(sample.boxes)
        images[i, :h, :w] = torch.from_numpy(sample.image)
        boxes[i, :count] = torch.from_numpy(sample.boxes)
        labels[i, :count] = torch.from_numpy(sample.labels)
        ignore[i, :count] = torch.from_numpy(sample.ignore)
        valid[i, :count] = True
    return Batch(
        indices=torch.tensor([s.index for s in samples]),
        wanted=torch.tensor([s.wanted for s in samples]),
        images=images.permute(0, 3, 1, 2),
        sizes=sizes,
        original_sizes=torch.tensor([s.original_size for s in samples]),
        boxes=boxes,
        labels=labels,
        valid=valid,
        ignore=ignore,
    )
