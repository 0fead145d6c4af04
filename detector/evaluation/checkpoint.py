"""Scoring a checkpoint: everything that is needed is in it."""

from pathlib import Path

from data.loader import checked, eval_loader
from detector.build import build_device, build_model, build_pipeline, build_set
from detector.config import apply_overrides, parse_config
from detector.evaluation.coco import CocoResult, evaluate_coco
from detector.training.checkpoint import find_checkpoint, load_checkpoint, load_weights
from detector.training.trainer import predict_set, voc_metrics


def evaluate_checkpoint(
    path: Path, overrides: list[str], split: str
) -> tuple[CocoResult, dict[str, float], str]:
    """Metrics of a checkpoint (best.pt of a run folder) on a split, VOC's measures, and a title.

    Raises:
        InputError: the checkpoint, an override or the data is wrong.
    """
    file = find_checkpoint(path, "best.pt")
    content = load_checkpoint(file)
    config = parse_config(apply_overrides(content["config"], overrides), str(file))
    device = build_device(config.train.device)
    records = build_set(config.data, split, tuple(content["classes"]))
    model = build_model(config.model, len(content["classes"]), pretrained=False)
    load_weights(model, content["model"], str(file))
    model = model.to(device)
    loader = eval_loader(
        records,
        build_pipeline(config.data, False),
        config.eval.batch_size,
        config.data.workers,
        device.type == "cuda",
    )
    predictions = predict_set(config, model, checked(loader), device)
    title = f"{file}, split {split} of {config.data.root} ({len(records)} images)"
    return evaluate_coco(records, predictions), voc_metrics(config, records, predictions), title
