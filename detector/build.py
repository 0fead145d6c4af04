"""From the configuration to the parts: model, losses and data take plain arguments."""

import platform
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.annotations import join_sets, require_folder
from data.cache import DiskCache, ImageCache, RamCache
from data.coco import load_coco
from data.faults import DataFault, raise_or_collect
from data.loader import eval_loader
from data.sample import DetectionSet
from data.shapes import ShapesSpec, ensure_shapes
from data.transforms import Pipeline, resized_to
from data.voc import folders_of_split, load_voc, voc_classes
from data.yolo import load_yolo
from detector.adaptive_matcher import match_adaptively
from detector.anchors import AnchorGenerator
from detector.backbone import FeaturePyramid, ResNet
from detector.config import Config, DataConfig, LossConfig, ModelConfig, TrainConfig, Transform
from detector.criterion import Criterion, GroundTruth, Matching
from detector.heads import Head
from detector.losses import (
    Exchange,
    ap_loss,
    ce_ohem_loss,
    class_ap_loss,
    focal_loss,
    giou_errors,
    smooth_l1_errors,
)
from detector.matcher import Matches, match
from detector.objectives import BoxErrors, ClassLoss, Objective, alrp, rank_sort, separate
from detector.ranked import ranked_share
from detector.retinanet import HeadOutputs, RetinaNet
from errors import InputError, first_line


def build_set(
    config: DataConfig,
    split: str,
    classes: tuple[str, ...] | None = None,
    faults: list[DataFault] | None = None,
) -> DetectionSet:
    """The annotations of one split: "train", "val" or "test".

    Args:
        classes: the classes of the model, where there is one; they come before `data.classes`.
        faults: where all faults of the split are collected; without it the first is raised.

    Raises:
        InputError: the split is not configured or empty, or anything in it is wrong.
    """
    names = getattr(config.splits, split)
    if names is None:
        raise InputError(
            f"data.splits.{split} is not set; set data.splits.{split}=NAME, a split of the data set"
        )
    names = [names] if isinstance(names, str) else names
    if classes is None and config.classes is not None:
        classes = tuple(config.classes)
    root = Path(config.root)
    if config.format == "shapes":
        spec = ShapesSpec(
            train_images=config.shapes_train_images,
            val_images=config.shapes_val_images,
            size_px=config.shapes_size_px,
            imbalance=config.shapes_imbalance,
        )
        ensure_shapes(root, spec)
    if not (config.format == "yolo" and root.is_file()):
        require_folder(root, "data.root", "set data.root=FOLDER, that of your data set")
    parts = [_load(config, root, name, classes, faults) for name in names]
    records = join_sets(parts, f"data.splits.{split}")
    if len(records) == 0:
        message = f"data.splits.{split} ({', '.join(names)}) of {root} holds no images"
        raise_or_collect(DataFault("no-images", message), faults)
    elif split == "train" and records.ignore.all():
        crowds = f": all {len(records.boxes)} are iscrowd or difficult" if len(records.boxes) else ""
        message = f"data.splits.train ({', '.join(names)}) of {root} holds no boxes to learn from{crowds}"
        raise_or_collect(DataFault("no-boxes", message), faults)
    if split == "train" and config.classes is not None:
        seen = set(records.labels[~records.ignore].tolist())
        unseen = [name for label, name in enumerate(records.classes) if label not in seen]
        for unseen_name in unseen:
            message = f"data.classes: data.splits.train holds no box of class '{unseen_name}'"
            raise_or_collect(DataFault("class-unseen", message), faults)
    return records


def _load(
    config: DataConfig,
    root: Path,
    name: str,
    classes: tuple[str, ...] | None,
    faults: list[DataFault] | None,
) -> DetectionSet:
    if config.format == "voc":
        if classes is None and isinstance(config.splits.train, list):
            # Joined folders must agree on the classes before any of them is read.
            folders = sorted({folders_of_split(root, part)[0].annotations for part in config.splits.train})
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
    """Those of training or of evaluation, at data.image_size where it is set."""
    transforms = config.transforms.train if training else config.transforms.eval
    if config.image_size is None:
        return transforms
    return resized_to(config.image_size, transforms, config.transforms.eval)


def build_cache(config: DataConfig, records: DetectionSet) -> ImageCache | None:
    """Where the decoded images of a set are kept, if they are.

    Raises:
        InputError: there is not enough memory, or space on the disk.
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
    """Batches for evaluation: every image once, a share of the batches for each process."""
    pipeline = build_pipeline(config.data, training=False)
    pin_memory = device.type == "cuda"
    workers = config.data.workers
    size = config.eval.batch_size
    return eval_loader(records, pipeline, size, workers, pin_memory, rank, processes, cache)


def build_model(config: ModelConfig, classes: int, pretrained: bool) -> RetinaNet:
    """A RetinaNet with fresh weights, or ImageNet's in the backbone where `pretrained`.

    Raises:
        InputError: the ImageNet weights cannot be fetched.
    """
    backbone = ResNet(config.backbone, config.norm, pretrained, config.frozen_stages)
    anchors = AnchorGenerator(config.anchors.sizes, config.anchors.ratios)
    head = partial(
        Head,
        in_channels=config.pyramid_channels,
        width=config.head_width,
        depth=config.head_depth,
        anchors=anchors.per_location,
        norm=config.head_norm,
    )
    return RetinaNet(
        backbone,
        FeaturePyramid(backbone.channels, config.pyramid_channels, config.p6_from),
        head(outputs=classes, prior=config.prior),
        head(outputs=4),
        anchors,
    )


def place(model: RetinaNet, config: TrainConfig, device: torch.device) -> RetinaNet:
    """Move a model to its device and memory format; the layout of the weights decides the features'."""
    return model.to(device).to(memory_format=memory_format(config, device))


def memory_format(config: TrainConfig, device: torch.device) -> torch.memory_format:
    """The layout of weights and features."""
    last = config.channels_last
    if last == "auto":
        last = device.type != "cpu" or build_amp(config, device) is not None
    return torch.channels_last if last else torch.contiguous_format


def build_criterion(config: Config, device: torch.device, exchange: Exchange) -> Criterion:
    """The losses of training, taken together with the processes of the exchange.

    Raises:
        InputError: the loss cannot be trained with.
    """
    matcher, gamma = config.matcher, config.loss.focal_gamma
    if config.loss.name == "focal" and 0 < gamma < 1:  # (1 - p) ** gamma is infinitely steep where p is 1
        raise InputError(
            f"loss.focal_gamma: 0 or at least 1 is wanted, got {gamma:g}: between, the gradient of a sure "
            "negative is NaN"
        )
    if matcher.name == "iou" and matcher.negative_iou == 0:
        raise InputError("matcher.negative_iou: 0 leaves no anchor negative; a value above it is wanted")
    objective = build_objective(config.loss, box_std(config, device), exchange)
    share = None
    if config.loss.name in ("ap", "alrp", "rank_sort"):
        by_class = config.loss.name == "ap" and config.loss.class_by_class
        share = partial(
            ranked_share, delta=ranking_delta(config.loss), class_by_class=by_class, exchange=exchange
        )
    return Criterion(build_matching(config), objective, share)


def build_matching(config: Config) -> Matching:
    """Which anchors of a batch are to learn which gt box."""
    matcher, shapes = config.matcher, config.model.anchors
    per_location = len(shapes.sizes[0]) * len(shapes.ratios)

    def by_iou(outputs: HeadOutputs, gt: GroundTruth) -> Matches:
        thresholds = matcher.positive_iou, matcher.negative_iou
        return match(outputs.anchors, gt.boxes, gt.valid, gt.ignore, *thresholds, matcher.best_anchor)

    def adaptively(outputs: HeadOutputs, gt: GroundTruth) -> Matches:
        anchors = outputs.anchors, outputs.level_sizes, per_location
        boxes = gt.boxes, gt.valid, gt.ignore
        return match_adaptively(*anchors, *boxes, matcher.candidates, matcher.best_anchor)

    return {"iou": by_iou, "atss": adaptively}[matcher.name]


def build_exchange(config: LossConfig) -> Exchange:
    """All processes of the training where there are several and loss.global_ranking is on."""
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return Exchange(torch.distributed.group.WORLD if several and config.global_ranking else None)


def ranking_delta(config: LossConfig) -> float:
    """Half-width of the soft step: as set, else as published."""
    published = 0.5 if config.name == "rank_sort" else 1.0
    return published if config.delta is None else config.delta


def build_objective(config: LossConfig, std: Tensor, exchange: Exchange) -> Objective:
    """The losses that the configuration names."""
    box_errors: BoxErrors = (
        partial(giou_errors, std=std)
        if config.box == "giou"
        else partial(smooth_l1_errors, std=std, beta=config.smooth_l1_beta)
    )
    delta = ranking_delta(config)
    if config.name == "alrp":
        return partial(
            alrp,
            box_std=std,
            delta=delta,
            box_weight=config.box_weight,
            self_balance=config.self_balance,
            exchange=exchange,
        )
    if config.name == "rank_sort":
        return partial(
            rank_sort,
            box_errors=box_errors,
            box_std=std,
            delta=delta,
            box_weight=config.box_weight,
            self_balance=config.self_balance,
            exchange=exchange,
        )
    class_loss: ClassLoss
    if config.name == "focal":
        class_loss = partial(
            focal_loss, alpha=config.focal_alpha, gamma=config.focal_gamma, exchange=exchange
        )
    elif config.name == "ce_ohem":
        class_loss = partial(
            ce_ohem_loss, negatives_per_positive=config.negatives_per_positive, exchange=exchange
        )
    else:
        rank = class_ap_loss if config.class_by_class else ap_loss
        class_loss = partial(rank, delta=delta, interpolated=config.interpolated, exchange=exchange)
    return partial(
        separate,
        class_loss=class_loss,
        box_errors=box_errors,
        box_weight=config.box_weight,
        exchange=exchange,
    )


def box_std(config: Config, device: torch.device) -> Tensor:
    """The spread of the four deltas, float32 [4]."""
    return torch.tensor(config.model.box_std, device=device)


def build_amp(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast; None is off."""
    if config.amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[config.amp]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if fast else torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_is_fast_in_bf16() else None


def cpu_is_fast_in_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; without, it is 40 times slower than in float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN calls every CPU with AVX-512 fit for bf16; many of these only emulate it.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    # Not every PyTorch has oneDNN: that of macOS has not.
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def build_device(name: str, local_rank: int = 0, key: str = "train.device") -> torch.device:
    """The device of that name; "auto" takes a GPU where there is one.

    Args:
        local_rank: of several processes on this machine, each takes the GPU of its number.
        key: where the user set it, for the error.

    Raises:
        InputError: there is no such device.
    """
    wanted = name
    if name in ("auto", "cuda") and torch.cuda.is_available():
        wanted = f"cuda:{local_rank}"
    elif name == "auto":
        wanted = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
        torch.ones(1, device=device).item()  # which "meta" cannot
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason, other = first_line(error), f"cuda:{wanted}" if wanted.isdecimal() else "another"
        raise InputError(f"{key}: '{wanted}' cannot be used ({reason}); try {other}, or cpu") from None
    return device
