"""The configuration of the data set."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from detector.config.fields import (
    Classes,
    Count,
    Fraction,
    Integer,
    Names,
    NonNegative,
    Number,
    Parts,
    Section,
    Transform,
    Whole,
    in_home,
)


class SplitsConfig(Section):
    train: str | Names = Field("train", description="split to train on; several in a list are joined")
    val: str | Names = Field("val", description="split to evaluate on during training and by default")
    test: str | Names | None = Field(None, description="split that evaluate.py --split test scores")

    @field_validator("val", mode="before")
    @classmethod
    def _there_is_one(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("a validation split is required; python -m data.split sets some images aside")
        return value


class TransformsConfig(Section):
    train: list[Transform] = Field(
        ["HorizontalFlip"], description="transforms of the training images, in order; see docs/data.md"
    )
    eval: list[Transform] = Field(
        [], description="transforms of the images for evaluation; only resizing makes sense"
    )
    min_visibility: Fraction = Field(
        0.3, description="boxes of which a crop leaves a smaller share of the area are dropped"
    )


def _parts_once(merge: dict[str, Any]) -> dict[str, Any]:
    parts = [old for olds in merge.values() for old in olds]
    for old in parts:
        if parts.count(old) > 1:
            raise ValueError(
                f"'{old}' is merged into two classes; the new name comes first: {{new: [old, old]}}"
            )
    if "" in merge:
        raise ValueError("a class has no name")
    return merge


class DataConfig(Section):
    format: Literal["coco", "voc", "yolo", "shapes"] = Field(
        "shapes", description="layout of the data set on disk"
    )
    root: str = Field(
        "datasets/shapes",
        description="folder of the data set; yolo: the folder of data.yaml, or a .yaml file",
    )
    splits: SplitsConfig = SplitsConfig()
    annotations: str = Field(
        "annotations/{split}.json", description="coco: the annotation file of a split, relative to root"
    )
    images: str = Field("images", description="coco: the folder of a split's images, relative to root")
    classes: Classes | None = Field(
        None, description="use only these classes, in this order; by default all classes of the set"
    )
    merge: Annotated[dict[str, Parts], AfterValidator(_parts_once)] = Field(
        {},
        description="new classes and their names in the annotations: {cell: [RBC, WBC]} merges two "
        "classes, {red cell: RBC} renames one, {object: '*'} merges all that are in no other list",
    )
    image_size: Annotated[Integer, Field(ge=1, le=20_000)] | None = Field(
        None,
        description="long side of the images in evaluation, in pixels; ResizeWithin, Resize, "
        "LongestMaxSize and SmallestMaxSize are scaled along with it, other transforms are not (by default "
        "none is). Check that the anchors still fit: python -m data.check",
    )
    transforms: TransformsConfig = TransformsConfig()
    workers: Annotated[Integer, Field(ge=0, le=1024)] | None = Field(
        None,
        description="loading processes for each training process; by default one per spare core, at most 4",
    )
    repeat_rare: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None,
        description="show training images of rare classes more often: if fewer than this share of the "
        "images have a class, those images are shown sqrt(share / actual share) times per epoch, each time "
        "augmented differently (repeat factor sampling; 0.001 for LVIS, in a small set at least twice the "
        "share of its rarest class); null shows each image once",
    )
    group_by_shape: bool = Field(
        False, description="put training images of similar proportions into one batch, for less padding"
    )
    one_orientation: bool | None = Field(
        None,
        description="mirror training images at their diagonal so that all images of a step are upright or "
        "all are on their side, at random, for less padding; by default only where D4 (p: 1) turns them "
        "anyway",
    )
    cache: Literal["none", "ram", "disk"] = Field(
        "none",
        description="keep decoded training images: in memory, 3 bytes per pixel for each training process, "
        "or in a file that later trainings reuse",
    )
    cache_dir: str | None = Field(
        None,
        description="cache=disk: the folder of the file; by default ROOT.cache, next to root. Each list of "
        "images has its own file; those of earlier lists may be deleted",
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="what to do if a training image is missing or cannot be read: stop, or use the next "
        "image of the set in its place (or leave it out, if this is known at the start and no annotation "
        "gives its size)",
    )
    max_skipped: Whole = Field(
        20,
        description="on_error=skip: stop if one process has more than this many different unreadable images",
    )
    check: bool = Field(
        True, description="look for faults in the annotations before training, and report them as warnings"
    )
    shapes_train_images: Count = Field(1300, description="shapes: images to generate for training")
    shapes_val_images: Count = Field(200, description="shapes: images to generate for validation")
    shapes_size_px: Annotated[Integer, Field(ge=64, le=10_000)] = Field(
        160, description="shapes: width of an image"
    )
    shapes_imbalance: NonNegative = Field(
        0.5,
        description="shapes: exponent on the class frequencies: 0 makes all classes equally frequent, "
        "0.5 the first 4.5 times as frequent as the last, 1 20 times",
    )

    _home = field_validator("root", "cache_dir")(in_home)
