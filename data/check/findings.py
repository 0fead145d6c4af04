"""What a data set can have wrong, how bad it is, and what to do: the catalogue, and what was found."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from data.faults import DataFault
from data.sample import DetectionSet
from data.units import AS_IF, AS_PARTS


class Level(enum.IntEnum):
    """How bad a finding is."""

    ERROR = 0  # training refuses it, or stops at it
    WARNING = 1  # training goes on and suffers
    NOTE = 2  # worth knowing


@dataclass(frozen=True)
class Kind:
    """A line of the catalogue."""

    level: Level
    what: str
    remedy: str


_E, _W, _N = Level.ERROR, Level.WARNING, Level.NOTE
KINDS: dict[str, Kind] = {
    "split-unreadable": Kind(
        _E,
        "a split cannot be read at all",
        "mend the file or the key that is named, or set data.splits",
    ),
    "no-images": Kind(_E, "a split has no images", "correct data.splits"),
    "no-boxes": Kind(
        _E,
        "the training split has no boxes",
        "correct data.splits.train or data.classes, or see why labels are not found",
    ),
    "class-unseen": Kind(
        _E, "a class of data.classes has no box", "leave the class out, or correct its name"
    ),
    "image-missing": Kind(_E, "an image does not exist", "put the file there, or remove its annotation"),
    "image-unreadable": Kind(_E, "a file is no image, or damaged", "replace it, or remove its annotation"),
    "image-not-read": Kind(
        _W, "a picture is of a kind that is not read, and left out", "convert it to JPEG or PNG"
    ),
    "image-size-differs": Kind(
        _E,
        "an image has another size than its annotation says",
        "correct the annotation; where images were resized after it was made, the boxes too",
    ),
    "image-outside": Kind(_E, "a path leads out of the data set", "use a path below the folder"),
    "image-name-taken": Kind(_E, "two names stand for one file", "write each name as its file has it"),
    "annotation-unreadable": Kind(_E, "an annotation file is missing or malformed", "write it again"),
    "record-malformed": Kind(_E, "a record lacks a field, or holds no number", "correct or remove it"),
    "image-id-twice": Kind(_E, "an image id stands twice", "give each image an id of its own"),
    "image-unlisted": Kind(_E, "a box belongs to an image that is not listed", "list it, or remove the box"),
    "category-unlisted": Kind(
        _E,
        "a box has a class that is not listed",
        "list it, or correct the box; if all are one too high, or low, the list counts from another number",
    ),
    "category-alike": Kind(
        _E, "a class of training has nearly the same name in another split", "give it one name in both"
    ),
    "category-twice": Kind(_E, "a class stands twice", "keep one name and one id for each"),
    "box-not-finite": Kind(_E, "a box is NaN or infinite", "correct or remove it"),
    "box-reversed": Kind(
        _E,
        "a box has a negative width or height",
        "swap its corners, or remove it; VOC: perhaps width, height for xmax, ymax",
    ),
    "box-not-relative": Kind(_E, "coordinates outside [0, 1]", "divide them by the image's width and height"),
    "image-in-both": Kind(
        _W, "training and evaluation share an image", "remove it from one: the scores are too good"
    ),
    "image-in-val-and-test": Kind(
        _W,
        "validation and test share an image",
        "remove it from one: the best epoch and the thresholds are chosen on validation",
    ),
    "near-duplicate-in-both": Kind(
        _W, "training and evaluation hold nearly the same image", "look at both; keep them in one split"
    ),
    "versions-in-both": Kind(
        _W,
        "training and evaluation seem to hold versions of the same photographs, by their names (.rf.)",
        "look at some; if they are, divide anew with data.split, which keeps them on one side",
    ),
    "image-twice-differing": Kind(
        _W, "an image stands twice, with other boxes", "keep one of them, with all its boxes"
    ),
    "box-without-area": Kind(_W, "a box has no width or no height; it is dropped", "draw it again"),
    "box-corners": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners for sizes']}",
        "write x, y, width, height: each box is too large now",
    ),
    "box-corners-only": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners for centre and size']}",
        "write centre, width and height",
    ),
    "box-centres": Kind(
        _W,
        f"boxes reach outside {AS_IF['centres']}",
        "write the upper left corner: all boxes are off by half their size now",
    ),
    "box-not-centred": Kind(
        _W,
        f"boxes reach outside {AS_IF['corners']}",
        "write the centre: all boxes are off by half their size now",
    ),
    "box-y-first": Kind(_W, f"boxes reach outside {AS_IF['y before x']}", "write x, y, width, height"),
    "box-normalised": Kind(_E, f"nearly all boxes {AS_PARTS}", "write pixels"),
    "box-outside": Kind(_W, "a box lies outside its image; it is dropped", "draw it again, or remove it"),
    "box-partly-outside": Kind(
        _W, "more than a tenth of a box lies outside its image", "clip it: found boxes are, and cannot match"
    ),
    "box-duplicated": Kind(_W, "a box stands twice", "remove one: it counts as an object never found"),
    "box-tiny": Kind(
        _W,
        "a box is under 2 px after resizing",
        "keep images larger (data.image_size), cut large ones into tiles (eval.tile), or remove it",
    ),
    "class-without-boxes": Kind(
        _W, "a class has no box to learn from", "leave it out of data.classes, or add examples"
    ),
    "class-left-out": Kind(
        _W, "boxes of a class that training does not know", "add examples to training, or correct the name"
    ),
    "category-missing": Kind(
        _W,
        "a class of training is not listed in another split, and has no box there",
        "see that it has no other name there",
    ),
    "no-boxes-to-find": Kind(
        _W,
        "a split for evaluation has no boxes, and so no AP",
        "see that its annotations are where they belong",
    ),
    "much-ignored": Kind(
        _W,
        "much of a class is iscrowd or difficult, so neither learned nor evaluated",
        "nothing where it is meant; some tools mark every object drawn as a mask: iscrowd is 0 there",
    ),
    "label-without-image": Kind(
        _W, "a label file has no image; its boxes are left out", "put the image there, or remove the file"
    ),
    "label-beside": Kind(
        _W, "a label file lies where it is not looked for", "move it: from images/... to labels/..."
    ),
    "label-shared": Kind(
        _W, "two images have one label file: its boxes are in both", "rename one, with labels of its own"
    ),
    "ignore-unused": Kind(
        _W,
        "annotations are marked ignore: 1, which COCO's metric overlooks, and so does a training",
        "write iscrowd: 1 where nothing is to be learnt or counted, or remove them",
    ),
    "labels-missing": Kind(
        _W, "a split has no label files, and so no boxes", "put them where they are looked for"
    ),
    "keypoints-as-polygons": Kind(
        _W, "what is read as polygons seems to be boxes with keypoints", "write kpt_shape into data.yaml"
    ),
    "orientation-unclear": Kind(
        _W,
        "EXIF says to turn an image, and others of its split were annotated as they are stored",
        "see in the samples where its boxes are; if they are off, take away its orientation",
    ),
    "image-unannotated": Kind(
        _W,
        "an image in the folder of a split has no annotation file, and is left out",
        "write one; without <object> it is background",
    ),
    "annotation-not-read": Kind(_W, "a file that ends in .XML is not read", "rename it, to .xml"),
    "range-unused": Kind(
        _W,
        "16-bit images that hold values of fewer bits, 12 say, and are nearly black",
        "save them as 8 bit, or with their values multiplied: by 16 for 12 bit",
    ),
    "names-alike": Kind(
        _W,
        "class names that differ in case, spaces, an s or a letter only",
        "make them one class, if they are: data.merge={NAME: [NAME, OTHER]}",
    ),
    "anchors-miss": Kind(
        _W,
        "many boxes have no anchor that fits",
        "take the sizes and ratios that data.check and --dry-run print; where they find none, larger images",
    ),
    "objects-lost": Kind(
        _W,
        "augmentation leaves no object in most samples, so that there is little to learn from",
        "a milder one; crops that keep an object are IoUCrop and, of large images, AtLeastOneBBoxRandomCrop",
    ),
    "size-not-learnt": Kind(
        _W,
        "evaluation shows objects at another size than was learnt",
        "set both lists of data.transforms, or data.image_size; after crops that are enlarged, images too",
    ),
    "box-rotated": Kind(
        _W,
        "a box has a rotation, and is read as if it had none",
        "draw it upright around the object: the tool writes the box before it was turned",
    ),
    "box-over-edge": Kind(_N, "a box reaches a little over the edge; it is clipped", "nothing, or clip it"),
    "box-whole-image": Kind(_N, "a box covers the whole image", "see that it is one object"),
    "box-in-two-classes": Kind(_N, "the same box under two classes", "see which one is meant"),
    "image-many-pages": Kind(
        _N, "an image has several pages or frames", "save those that are meant as images of their own"
    ),
    "image-twice": Kind(_N, "an image stands twice in a split", "remove one, unless it is to count double"),
    "same-name-other-image": Kind(
        _N, "files of one name hold different images", "see that none was overwritten or mixed up"
    ),
    "image-turned": Kind(
        _N, "EXIF says to turn an image", "see in the samples that boxes fit; best save it upright"
    ),
    "image-as-stored": Kind(
        _N,
        "EXIF says to turn an image whose boxes are for the pixels as they are stored",
        "nothing; best take away its orientation",
    ),
    "image-not-rgb": Kind(
        _N, "grey, 16-bit, palette or transparent images", "nothing: grey is repeated, alpha dropped"
    ),
    "sizes-vary": Kind(_N, "image sizes differ very much", "see that small ones are not blown up"),
    "mostly-unannotated": Kind(
        _W,
        "many training images have no box, and hardly any of evaluation",
        "annotate them to the end, or leave them out: an object without a box is learnt as background",
    ),
    "mostly-empty": Kind(_N, "most images have no box", "nothing, if they are meant as background"),
    "class-rare": Kind(_N, "a class has very few boxes", "add examples; data.repeat_rare helps"),
    "class-not-evaluated": Kind(_N, "a class has no box to evaluate", "move some examples there"),
}


# Of boxes, by the size that their image is said to have.
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
    annotation: int | None = None  # as in DetectionSet.annotation_ids
    other: tuple[str, int] | None = None  # the split and the row of an image that it is like


@dataclass(frozen=True, slots=True)
class BoxSpot:
    """A box where something was found, with what `Spot` has. Its line is made when it is asked for.

    There may be a million of them, and hardly more than the first is shown.

    Args:
        problem: a format of `values`, each of which has an entry for each box.
        noun: what `annotation_ids` number: annotation, object, line.
        box: its row in `records.boxes`.
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
    """One finding for each kind, the most severe first; of like severity the one with most places.

    A place that several readers name in the same words counts once.
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
    """Whether any of them is worse than a note."""
    return any(finding.kind.level < Level.NOTE for finding in findings)


def spot_of_fault(fault: DataFault, split: str) -> Spot:
    """A reader's fault as a place."""
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
    """A place that is an image: "image PATH (id 7, train) PROBLEM"."""
    path, number = str(records.files[row]), int(records.image_ids[row])
    return Spot(code, f"image {path} (id {number}, {split}) {problem}", split, path, number, other=other)


def numbered(noun: str, number: int) -> str:
    """ "annotation 3", by a number of `annotation_ids`."""
    return f"{noun} without id" if number == -1 else f"{noun} {number}"
