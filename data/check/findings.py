"""The catalogue of faults in data sets (severity, description, remedy), and the records of those found."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from data.faults import DataFault
from data.sample import DetectionSet
from data.units import AS_IF, AS_PARTS


class Level(enum.IntEnum):
    """Severity of a finding."""

    ERROR = 0  # training refuses to start, or stops
    WARNING = 1  # training runs, with worse results
    NOTE = 2  # worth knowing


@dataclass(frozen=True)
class Kind:
    """An entry of the catalogue."""

    level: Level
    what: str
    remedy: str


_E, _W, _N = Level.ERROR, Level.WARNING, Level.NOTE
KINDS: dict[str, Kind] = {
    "split-unreadable": Kind(
        _E,
        "a split cannot be read at all",
        "fix the file or setting that is named, or set data.splits",
    ),
    "no-images": Kind(_E, "a split has no images", "correct data.splits"),
    "no-boxes": Kind(
        _E,
        "the training split has no boxes",
        "correct data.splits.train or data.classes, or find out why labels are not found",
    ),
    "class-unseen": Kind(
        _E, "a class of data.classes has no box", "leave the class out, or correct its name"
    ),
    "image-missing": Kind(_E, "an image does not exist", "put the file there, or remove its annotation"),
    "image-unreadable": Kind(_E, "a file is damaged or not an image", "replace it, or remove its annotation"),
    "image-not-read": Kind(
        _W, "a picture is of a kind that is not supported, and is left out", "convert it to JPEG or PNG"
    ),
    "image-size-differs": Kind(
        _E,
        "the size of an image differs from its annotation",
        "correct the annotation; if the images were resized after annotation, correct the boxes too",
    ),
    "image-outside": Kind(_E, "a path leads out of the data set", "use a path inside the data set folder"),
    "image-name-taken": Kind(
        _E, "two names refer to the same file", "spell each name exactly as its file is named"
    ),
    "annotation-unreadable": Kind(_E, "an annotation file is missing or malformed", "recreate the file"),
    "record-malformed": Kind(
        _E, "a record lacks a field, or has something else in place of a number", "correct or remove it"
    ),
    "image-id-twice": Kind(_E, "an image id is listed twice", "give each image an id of its own"),
    "image-unlisted": Kind(
        _E, "a box belongs to an image that is not listed", "list the image, or remove the box"
    ),
    "category-unlisted": Kind(
        _E,
        "a box has a class that is not listed",
        "list the class, or correct the box; if all are too high or too low by one, the list starts from "
        "another number",
    ),
    "category-alike": Kind(
        _E,
        "a class of training has nearly the same name in another split",
        "use the same name in both splits",
    ),
    "category-twice": Kind(_E, "a class is listed twice", "keep one name and one id for each"),
    "box-not-finite": Kind(_E, "a box is NaN or infinite", "correct or remove it"),
    "box-reversed": Kind(
        _E,
        "a box has a negative width or height",
        "swap its corners, or remove it; in VOC, xmax, ymax may hold width, height",
    ),
    "box-not-relative": Kind(_E, "coordinates outside [0, 1]", "divide them by the image's width and height"),
    "image-in-both": Kind(
        _W,
        "training and evaluation share an image",
        "remove it from one of them: the scores are too good otherwise",
    ),
    "image-in-val-and-test": Kind(
        _W,
        "validation and test share an image",
        "remove it from one of them: the best epoch and the thresholds are chosen on validation",
    ),
    "near-duplicate-in-both": Kind(
        _W,
        "training and evaluation contain nearly the same image",
        "look at both, and keep them in the same split",
    ),
    "versions-in-both": Kind(
        _W,
        "training and evaluation seem to contain versions of the same photographs, judging by their names "
        "(.rf.)",
        "look at some; if so, divide the set again with data.split, which keeps them together",
    ),
    "image-twice-differing": Kind(
        _W, "an image is listed twice, with different boxes", "keep one of the two, with all its boxes"
    ),
    "box-without-area": Kind(_W, "a box has zero width or height; it is dropped", "draw it again"),
    "box-corners": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners for sizes']}",
        "write x, y, width, height: as it is, every box is too large",
    ),
    "box-corners-only": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners for centre and size']}",
        "write centre, width and height",
    ),
    "box-centres": Kind(
        _W,
        f"boxes reach outside {AS_IF['centres']}",
        "write the upper left corner: as it is, every box is off by half its size",
    ),
    "box-not-centred": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners']}",
        "write the centre: as it is, every box is off by half its size",
    ),
    "box-y-first": Kind(_W, f"boxes reach outside {AS_IF['y before x']}", "write x, y, width, height"),
    "box-normalised": Kind(_E, f"nearly all boxes {AS_PARTS}", "write pixel coordinates"),
    "box-outside": Kind(_W, "a box lies outside its image; it is dropped", "draw it again, or remove it"),
    "box-partly-outside": Kind(
        _W,
        "more than a tenth of a box lies outside its image",
        "clip it: detections are clipped, and cannot match it otherwise",
    ),
    "box-duplicated": Kind(
        _W, "a box is annotated twice", "remove one of the two: it counts as an object that is never found"
    ),
    "box-tiny": Kind(
        _W,
        "a box is under 2 px after resizing",
        "keep images larger (data.image_size), cut large ones into tiles (eval.tile), or remove it",
    ),
    "class-without-boxes": Kind(
        _W, "a class has no box to learn from", "leave it out of data.classes, or add examples"
    ),
    "class-left-out": Kind(
        _W, "boxes have a class that training does not know", "add examples to training, or correct the name"
    ),
    "category-missing": Kind(
        _W,
        "a class of training is not listed in another split, and has no box there",
        "check that it does not have another name there",
    ),
    "no-boxes-to-find": Kind(
        _W,
        "a split for evaluation has no boxes, and so no AP",
        "check that its annotations are where they belong",
    ),
    "much-ignored": Kind(
        _W,
        "many boxes of a class are iscrowd or difficult, and so neither learned nor evaluated",
        "nothing if this is intended; some tools mark every object drawn as a mask, which should have "
        "iscrowd: 0",
    ),
    "label-without-image": Kind(
        _W, "a label file has no image; its boxes are left out", "add the image, or remove the file"
    ),
    "label-beside": Kind(
        _W, "a label file is not where it is looked for", "move it: from images/... to labels/..."
    ),
    "label-shared": Kind(
        _W,
        "two images share one label file: its boxes are in both",
        "rename one of the images, and give it labels of its own",
    ),
    "ignore-unused": Kind(
        _W,
        "annotations are marked ignore: 1, which has no effect in COCO's metric or in training",
        "use iscrowd: 1 for regions that are neither to be learned nor counted, or remove them",
    ),
    "labels-missing": Kind(
        _W, "a split has no label files, and so no boxes", "put the label files where they are looked for"
    ),
    "keypoints-as-polygons": Kind(
        _W, "what is read as polygons looks like boxes with keypoints", "add kpt_shape to data.yaml"
    ),
    "orientation-unclear": Kind(
        _W,
        "an image is turned by EXIF, but others of its split were annotated as they are stored",
        "check its boxes in the samples; if they are misplaced, remove its EXIF orientation",
    ),
    "image-unannotated": Kind(
        _W,
        "an image in the folder of a split has no annotation file, and is left out",
        "add one; without <object> the image is background",
    ),
    "annotation-not-read": Kind(_W, "a file that ends in .XML is not read", "rename it to .xml"),
    "range-unused": Kind(
        _W,
        "16-bit images use only some of the bits, such as 12, and are nearly black",
        "save them as 8 bit, or multiply their values (by 16 for 12 bit)",
    ),
    "names-alike": Kind(
        _W,
        "class names differ only in case, spaces, an s or a single letter",
        "if they are the same class, merge them: data.merge={NAME: [NAME, OTHER]}",
    ),
    "anchors-miss": Kind(
        _W,
        "many boxes have no anchor that fits",
        "use the sizes and ratios that data.check and --dry-run print; if they find none, use larger images",
    ),
    "objects-lost": Kind(
        _W,
        "augmentation leaves no object in most samples, so there is little to learn from",
        "use milder augmentation; crops that keep an object are IoUCrop and, for large images, "
        "AtLeastOneBBoxRandomCrop",
    ),
    "size-not-learnt": Kind(
        _W,
        "evaluation shows objects at a different size than training",
        "set both lists of data.transforms, or data.image_size; if training enlarges crops, enlarge the "
        "images of evaluation too",
    ),
    "box-rotated": Kind(
        _W,
        "a box has a rotation, which is ignored",
        "draw it upright around the object: the tool writes the box as it was before it was rotated",
    ),
    "box-over-edge": Kind(_N, "a box extends slightly beyond the edge; it is clipped", "nothing, or clip it"),
    "box-whole-image": Kind(_N, "a box covers the whole image", "check that it is a single object"),
    "box-in-two-classes": Kind(_N, "the same box is annotated with two classes", "decide which one is meant"),
    "image-many-pages": Kind(
        _N, "an image has several pages or frames", "save the ones that are needed as separate images"
    ),
    "image-twice": Kind(
        _N,
        "an image is listed twice in a split",
        "remove one of the two, unless the image should count double",
    ),
    "same-name-other-image": Kind(
        _N, "files with the same name contain different images", "check that none was overwritten or mixed up"
    ),
    "image-turned": Kind(
        _N,
        "an image is turned by EXIF",
        "check in the samples that its boxes fit; preferably save it upright",
    ),
    "image-as-stored": Kind(
        _N,
        "an image is turned by EXIF, but its boxes fit the pixels as stored",
        "nothing; preferably remove its EXIF orientation",
    ),
    "image-not-rgb": Kind(
        _N,
        "images are grey, 16-bit, palette or transparent",
        "nothing: grey is repeated in all channels, alpha is dropped",
    ),
    "sizes-vary": Kind(_N, "image sizes differ very much", "check that small ones are not enlarged too much"),
    "mostly-unannotated": Kind(
        _W,
        "many training images have no box, but hardly any of evaluation",
        "finish annotating them, or leave them out: an object without a box is learned as background",
    ),
    "mostly-empty": Kind(_N, "most images have no box", "nothing if they are meant as background"),
    "class-rare": Kind(_N, "a class has very few boxes", "add examples, or set data.repeat_rare"),
    "class-not-evaluated": Kind(_N, "a class has no box to evaluate", "move some examples to that split"),
}


# Findings about box positions, which depend on the annotated image size.
OF_PLACES = frozenset(
    {
        "box-centres",
        "box-corners",
        "box-corners-only",
        "box-not-centred",
        "box-outside",
        "box-over-edge",
        "box-partly-outside",
        "box-tiny",
        "box-whole-image",
        "box-y-first",
    }
)


@dataclass(frozen=True)
class Spot:
    """One place where something was found."""

    code: str  # a key of KINDS
    text: str  # one line
    split: str | None = None
    image: str | None = None  # path
    image_id: int | None = None
    annotation: int | None = None  # see DetectionSet.annotation_ids
    other: tuple[str, int] | None = None  # split and row of a similar image


@dataclass(frozen=True, slots=True)
class BoxSpot:
    """A box where something was found; has the fields of `Spot`. Its text is formatted on demand.

    There may be a million of them, of which only the first few are shown.

    Args:
        problem: a format string for `values`, each of which has an entry per box.
        noun: what `annotation_ids` number: annotation, object, line.
        box: row in `records.boxes`.
    """

    code: str
    problem: str
    values: tuple[NDArray[Any], ...]
    split: str
    records: DetectionSet
    noun: str
    box: int

    @property
    def text(self) -> str:
        """annotation 3 of image PATH (id 7, train): CLASS [x0, y0, x1, y1] PROBLEM."""
        r, box = self.records, self.box
        corners = ", ".join(f"{v:g}" for v in r.boxes[box])
        problem = self.problem.format(*(of_boxes[box] for of_boxes in self.values))
        place = (
            f"{numbered(self.noun, self.annotation)} of image {self.image} (id {self.image_id}, {self.split})"
        )
        return f"{place}: {r.classes[r.labels[box]]} [{corners}] {problem}"

    @property
    def _row(self) -> int:
        return self.records.row_of(self.box)

    @property
    def image(self) -> str:
        return str(self.records.files[self._row])

    @property
    def image_id(self) -> int:
        return int(self.records.image_ids[self._row])

    @property
    def annotation(self) -> int:
        return int(self.records.annotation_ids[self.box])


AnySpot = Spot | BoxSpot


@dataclass(frozen=True)
class Finding:
    """All places of one kind."""

    code: str
    spots: tuple[AnySpot, ...]

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]


def gather(spots: Iterable[AnySpot]) -> list[Finding]:
    """One finding per kind, sorted by severity, then by number of places, descending.

    A place that several readers report in the same words counts once.
    """
    places: dict[str, list[AnySpot]] = {}
    said: set[tuple[str, str]] = set()
    for spot in spots:
        of_code = places.setdefault(spot.code, [])
        if isinstance(spot, Spot):
            if (spot.code, spot.text) in said:
                continue
            said.add((spot.code, spot.text))
        of_code.append(spot)
    findings = [Finding(code, tuple(found)) for code, found in places.items()]
    return sorted(findings, key=lambda f: (f.kind.level, -len(f.spots), f.code))


def hurts(findings: Iterable[Finding]) -> bool:
    """Whether any finding is worse than a note."""
    return any(finding.kind.level < Level.NOTE for finding in findings)


def spot_of_fault(fault: DataFault, split: str) -> Spot:
    """The place of a fault that a reader reported."""
    image = None if fault.image is None else str(fault.image)
    return Spot(fault.code, str(fault), split, image, fault.image_id, fault.annotation)


def spot_of_image(
    code: str,
    problem: str,
    split: str,
    records: DetectionSet,
    row: int,
    other: tuple[str, int] | None = None,
) -> Spot:
    """A place that is a whole image: "image PATH (id 7, train) PROBLEM"."""
    path, number = str(records.files[row]), int(records.image_ids[row])
    return Spot(code, f"image {path} (id {number}, {split}) {problem}", split, path, number, other=other)


def numbered(noun: str, number: int) -> str:
    """ "annotation 3", or "annotation without id"; `number` is one of `annotation_ids`."""
    return f"{noun} without id" if number == -1 else f"{noun} {number}"
