"""Builds data sets, pipelines, caches and the evaluation loader from the configuration."""

from pathlib import Path

import torch
from torch.utils.data import DataLoader

from data.annotations import join_sets, require_folder
from data.cache import DiskCache, ImageCache, RamCache
from data.coco import load_coco
from data.faults import DataFault, lists_all, raise_or_collect
from data.loader import eval_loader
from data.merging import merged
from data.sample import DetectionSet
from data.shapes import ShapesSpec, ensure_shapes
from data.transform_list import resized_to
from data.transforms import Pipeline
from data.voc import folders_of_split, load_voc, voc_classes
from data.yolo import load_yolo
from detector.config import Config, DataConfig
from detector.config.fields import Transform
from errors import InputError


def build_set(
    config: DataConfig,
    split: str,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """The annotations of one split: "train", "val" or "test".

    Args:
        classes: the classes of the model, if there is one; they take precedence over `data.classes`.
        faults: collects the faults of the split, all or those of `UnreadableImages`; if None, the first one
            is raised.

    Raises:
        InputError: the split is not configured or empty, or anything in it is wrong.
    """
    names = getattr(config.splits, split)
    if names is None:
        raise InputError(
            f"data.splits.{split} is not set; set data.splits.{split}=NAME to a split of the data set"
        )
    names = [names] if isinstance(names, str) else names
    if classes is None and config.classes is not None:
        classes = tuple(config.classes)
    root = Path(config.root)
    if config.format == "shapes":
        _ensure_shapes(config, split, names)
    if not (config.format == "yolo" and root.is_file()):
        require_folder(root, "data.root", "set data.root=FOLDER to the folder of your data set")
    to_read = None if config.merge else classes
    parts = [_load(config, root, name, names, to_read, faults) for name in names]
    if config.merge:  # only train must have all of them; other splits need not list classes without boxes
        parts = merged(parts, config.merge, classes, f"split {' + '.join(names)}", strict=split == "train")
    records = join_sets(parts, f"data.splits.{split}")
    if len(records) == 0 and faults and not lists_all(faults):
        raise faults[0]
    of_root = f"data.splits.{split} ({', '.join(names)}) of {root}"
    if len(records) == 0:
        raise_or_collect(DataFault("no-images", f"{of_root} has no images"), faults)
    elif split == "train" and records.ignore.all():
        crowds = f": all {len(records.boxes)} are iscrowd or difficult" if len(records.boxes) else ""
        raise_or_collect(DataFault("no-boxes", f"{of_root} has no boxes to learn from{crowds}"), faults)
    if split == "train" and config.classes is not None:
        seen = set(records.labels[~records.ignore].tolist())
        for unseen in (name for label, name in enumerate(records.classes) if label not in seen):
            message = f"data.classes: data.splits.train has no box of class '{unseen}'"
            raise_or_collect(DataFault("class-unseen", message), faults)
    return records


def _ensure_shapes(config: DataConfig, split: str, names: list[str]) -> None:
    """Generate the demo data set, unless it exists. Raises InputError: it has no such split."""
    unknown = next((name for name in names if name not in ("train", "val")), None)
    if unknown is not None:
        raise InputError(f"data.splits.{split}: the generated set has train and val, not '{unknown}'")
    spec = ShapesSpec(
        train_images=config.shapes_train_images,
        val_images=config.shapes_val_images,
        size_px=config.shapes_size_px,
        imbalance=config.shapes_imbalance,
    )
    ensure_shapes(Path(config.root), spec)


def _load(
    config: DataConfig,
    root: Path,
    name: str,
    joined: list[str],
    classes: tuple[str, ...] | None,
    faults: list[DataFault] | None,
) -> DetectionSet:
    if config.format == "voc":
        if classes is None and len(joined) > 1:
            # Joined folders must agree on the classes before any of them is read.
            folders = sorted({folders_of_split(root, part)[0].annotations for part in joined})
            classes = tuple(sorted({name for place in folders for name in voc_classes(place, faults)}))
        return load_voc(root, name, classes, faults)
    if config.format == "yolo":
        return load_yolo(root, name, classes, faults)
    annotations, images = config.annotations, config.images
    if config.format == "shapes":
        annotations, images = "annotations/{split}.json", "images/{split}"
    annotation_file = root / annotations.replace("{split}", name)
    return load_coco(annotation_file, root / images.replace("{split}", name), classes, faults)


def build_pipeline(config: DataConfig, training: bool, geometry: bool = False) -> Pipeline:
    """The augmentation pipeline of training, or the resizing of evaluation; `geometry`: see `Pipeline`."""
    transforms = transforms_of(config, training)
    if training:
        return Pipeline(transforms, config.transforms.min_visibility, "data.transforms.train", geometry)
    pipeline = Pipeline(transforms, 0.0, "data.transforms.eval", geometry)
    pipeline.check_that_it_resizes_only()
    return pipeline


def transforms_of(config: DataConfig, training: bool) -> list[Transform]:
    """The transforms of training or evaluation, rescaled to data.image_size if it is set."""
    transforms = config.transforms.train if training else config.transforms.eval
    if config.image_size is None:
        return transforms
    return resized_to(config.image_size, transforms, config.transforms.eval)


def build_cache(config: DataConfig, records: DetectionSet) -> ImageCache | None:
    """The cache of a set's decoded images, if configured.

    Raises:
        InputError: there is too little memory or disk space.
    """
    if config.cache == "ram":
        return RamCache(records)
    if config.cache == "disk":
        root = Path(config.root).absolute()
        folder = root.with_name(f"{root.name}.cache") if config.cache_dir is None else Path(config.cache_dir)
        return DiskCache(records, folder)
    return None


def build_eval_loader(
    config: Config,
    records: DetectionSet,
    device: torch.device,
    rank: int = 0,
    processes: int = 1,
    cache: ImageCache | None = None,
) -> DataLoader:
    """Batches for evaluation: every image once, with a share of the batches for each process."""
    pipeline = build_pipeline(config.data, training=False)
    pin_memory = device.type == "cuda"
    workers = config.data.workers
    size = config.eval.batch_size
    return eval_loader(records, pipeline, size, workers, pin_memory, rank, processes, cache)
