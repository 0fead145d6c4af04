"""The data records: DetectionSet (a split on disk), Sample (one image), Batch."""

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


_UNLISTED = -(2**62)  # this and below: ids for classes that a file does not list


def unlisted_id(k: int) -> int:
    """The k-th placeholder id for a class that a file does not list."""
    return _UNLISTED - k


def is_listed(category_id: int) -> bool:
    """Whether a category id comes from the annotations and is not a placeholder."""
    return category_id > _UNLISTED


@dataclass(frozen=True)
class DetectionSet:
    """The annotations of a split as flat arrays (every worker would copy lists of objects).

    The boxes of image i are rows offsets[i] to offsets[i + 1] (exclusive).
    """

    files: NDArray[np.str_]  # [I] paths of the images
    image_ids: NDArray[np.int64]  # [I] as in the annotations
    sizes: NDArray[np.int64]  # [I, 2] height, width in pixels
    offsets: NDArray[np.int64]  # [I + 1]
    boxes: NDArray[np.float64]  # [M, 4] xyxy pixels, as annotated
    labels: NDArray[np.int64]  # [M] index into classes
    ignore: NDArray[np.bool_]  # [M] crowd regions, difficult objects
    areas: NDArray[np.float64]  # [M] as annotated, else box area; for COCO's small / medium / large
    annotation_ids: NDArray[np.int64]  # [M] coco: id, voc: n-th object, yolo: line; -1 if none
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]  # category id of each class, as annotated; see `is_listed`
    renumbered: bool = False  # image or category ids differ from the annotations, or these have none

    def __len__(self) -> int:
        return len(self.files)

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """The image row of each box, [M]."""
        return np.repeat(np.arange(len(self)), self.boxes_in_images)

    @property
    def boxes_in_images(self) -> NDArray[np.int64]:
        """Number of boxes in each image, [I]."""
        return np.diff(self.offsets)

    def boxes_of(self, row: int) -> slice:
        """The rows of an image's boxes."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def row_of(self, box: int) -> int:
        """The image row of one box."""
        return int(self.offsets.searchsorted(box, side="right")) - 1

    def with_boxes(self, kept: NDArray[np.bool_]) -> "DetectionSet":
        """The same images with a subset of the boxes; `kept` is a mask [M]."""
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept, dtype=np.int64)])
        names = ("boxes", "labels", "ignore", "areas", "annotation_ids")
        return replace(self, offsets=ends[self.offsets], **{n: getattr(self, n)[kept] for n in names})

    def digest(self) -> str:
        """Hash that is equal for sets of the same images (by name and size) with the same boxes."""
        names = (Path(file).name.encode(errors="surrogatepass") for file in self.files.tolist())
        digest = hashlib.sha256(b"\0".join(names))
        for column in (self.sizes, self.offsets, self.boxes, self.labels, self.ignore):
            digest.update(column.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One augmented image and its boxes."""

    index: int  # row in the DetectionSet
    wanted: int  # requested row; differs from `index` if its image could not be read
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    original_size: tuple[int, int]  # height, width in the file
    boxes: NDArray[np.float32]  # [M, 4] xyxy pixels of `image`
    labels: NDArray[np.int64]  # [M]
    ignore: NDArray[np.bool_]  # [M]

    @staticmethod
    def without_boxes(index: int, image: NDArray[np.uint8], original_size: tuple[int, int]) -> "Sample":
        """An unannotated image; arguments as the attributes."""
        boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return Sample(index, index, image, original_size, boxes, labels, np.zeros(0, np.bool_))


@dataclass(frozen=True)
class Batch:
    """Images padded to one size, boxes padded to one count."""

    indices: Tensor  # int64 [B], rows in the DetectionSet
    wanted: Tensor  # int64 [B], requested rows
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
        """The same batch on a device; the copy is asynchronous from pinned memory."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def share_memory(self) -> "Batch":
        """The same batch in shared memory. Raises RuntimeError if there is no room."""
        return self._map(lambda t: t.share_memory_())

    def pin_memory(self) -> "Batch":
        """Called by DataLoader(pin_memory=True)."""
        return self._map(lambda t: t.pin_memory())


def collate(samples: list[Sample]) -> Batch:
    """Samples -> Batch: images zero-padded at the right and bottom to a multiple of 32 px."""
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
