"""The configuration: the data set."""

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
    train: str | Names = Field("train", description="what is trained on; a list is joined")
    val: str | Names = Field("val", description="what is evaluated during training and by default")
    test: str | Names | None = Field(None, description="what evaluate.py --split test scores")

    @field_validator("val", mode="before")
    @classmethod
    def _there_is_one(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("images to evaluate on are needed; python -m data.split sets some aside")
        return value


class TransformsConfig(Section):
    train: list[Transform] = Field(
        ["HorizontalFlip"], description="transforms of the training images, in order: docs/data.md"
    )
    eval: list[Transform] = Field([], description="the same for evaluation; only resizing makes sense")
    min_visibility: Fraction = Field(
        0.3, description="boxes with a smaller part of their area left by a crop are dropped"
    )


def _parts_once(merge: dict[str, Any]) -> dict[str, Any]:
    parts = [old for olds in merge.values() for old in olds]
    for old in parts:
        if parts.count(old) > 1:
            raise ValueError(
                f"'{old}' is a part of two classes; the new name comes first: {{new: [old, old]}}"
            )
    if "" in merge:
        raise ValueError("a class has no name")
    return merge


class DataConfig(Section):
    format: Literal["coco", "voc", "yolo", "shapes"] = Field(
        "shapes", description="layout of the data set on disk"
    )
    root: str = Field(
        "datasets/shapes", description="folder of the data set; yolo: that of data.yaml, or a .yaml file"
    )
    splits: SplitsConfig = SplitsConfig()
    annotations: str = Field(
        "annotations/{split}.json", description="coco: the annotation file of a split, below root"
    )
    images: str = Field("images", description="coco: the folder of a split's images, below root")
    classes: Classes | None = Field(
        None, description="use only these classes, in this order; by default all that the set has"
    )
    merge: Annotated[dict[str, Parts], AfterValidator(_parts_once)] = Field(
        {},
        description="new classes and what the annotations call them: {cell: [RBC, WBC]} makes one class of "
        "two, {red cell: RBC} gives another name, {object: '*'} takes all that stand in no list",
    )
    image_size: Annotated[Integer, Field(ge=1, le=20_000)] | None = Field(
        None,
        description="long side of the images of evaluation, in pixels; ResizeWithin, Resize, LongestMaxSize "
        "and SmallestMaxSize are scaled with it, no other transform (by default none is). See that the "
        "anchors fit: python -m data.check",
    )
    transforms: TransformsConfig = TransformsConfig()
    workers: Annotated[Integer, Field(ge=0, le=1024)] | None = Field(
        None,
        description="loading processes of each process of the training; by default one per spare core, 4 at "
        "most",
    )
    repeat_rare: Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None,
        description="show training images of rare classes more often: of a class that fewer than this share "
        "of the images have, sqrt(share / its part) times an epoch, differently augmented (repeat factor "
        "sampling; 0.001 for LVIS, in a small set twice the share of its rarest class and more); null shows "
        "each once",
    )
    group_by_shape: bool = Field(
        False, description="put training images of like proportions into one batch, for less padding"
    )
    one_orientation: bool | None = Field(
        None,
        description="mirror training images at their diagonal so that those of a step are all upright or all "
        "on their side, as drawn: less padding; by default where D4 (p: 1) turns them anyway",
    )
    cache: Literal["none", "ram", "disk"] = Field(
        "none",
        description="keep the decoded images of a training: in memory, 3 bytes per pixel for each process of "
        "the training, or in a file that later trainings use too",
    )
    cache_dir: str | None = Field(
        None,
        description="cache=disk: the folder of the file; by default next to root, ROOT.cache. Each list of "
        "images has a file of its own: those of earlier lists may be deleted",
    )
    on_error: Literal["raise", "skip"] = Field(
        "raise",
        description="a training image that is missing or cannot be read: stop, or let the next of the set "
        "stand in for it (leave it out, where that is known at the start and no annotation tells its size)",
    )
    max_skipped: Whole = Field(
        20, description="on_error=skip: so many different images on one process, then stop all the same"
    )
    check: bool = Field(
        True, description="look for faults in the annotations before training; they are said as warnings"
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
