"""Claim: ranking over accumulated micro-batches costs one more forward pass, and hardly any memory.

The same images in one optimizer step: as one large batch, as micro-batches that are ranked separately,
and as micro-batches that are ranked together. Run from the root: python -m benchmarks.accumulation
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/accumulation.py`

import torch

from benchmarks.measure import in_turns, parser, peak_extra_bytes, report, section
from data.feed import checked
from detector.config.file import load_config
from detector.training.trainer import Trainer

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
HEADER = ("one optimizer step over 8 images", "ms", "/ one batch", "peak memory, MB", "/ one batch")
NOTE = (
    "Forward, loss, backward and update of the demo's network (ResNet-18, 160 x 128 px, float32): "
    "median, and half the interquartile range in per cent; the three run in turns. Peak memory: of all "
    "tensors created during the step. With a norm that does not depend on the batch, the third row "
    "gives the gradients of the first, as `tests/detector/training/test_trainer.py` asserts."
)
VARIANTS = {
    "one batch": ("train.batch_size=8",),
    "4 micro-batches, each ranked by itself": ("train.batch_size=8", "train.accumulate=4"),
    "4 micro-batches, ranked together": (
        "train.batch_size=8",
        "train.accumulate=4",
        "train.rank_accumulated=true",
    ),
}


def build_step(root: str, overrides: tuple[str, ...]) -> Callable[[], object]:
    """One optimizer step of the trainer."""
    small = (f"data.root={root}", "data.shapes_train_images=8", "data.shapes_val_images=1", "data.workers=0")
    # Full-size images, as the note says: the recipe starts with smaller ones.
    plain = ("train.device=cpu", "train.amp=off", "schedule.image_scales=[1]")
    trainer = Trainer(load_config(RECIPE, [*small, *plain, *overrides]), "benchmark")
    batches = list(checked(trainer.parts.loader))

    def step() -> None:
        trainer.learner.begin(lr=1e-3)
        trainer.learner.update(trainer.gradients(batches))

    return step


def main() -> None:
    arguments = parser(
        "Time and memory of ranking over accumulated micro-batches.", repeats=10, device=False
    ).parse_args()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        steps = {name: build_step(f"{folder}/set", words) for name, words in VARIANTS.items()}
        timings = in_turns(steps, arguments.repeats, device)
        memory = {name: peak_extra_bytes(step, device) for name, step in steps.items()}
    whole = timings["one batch"]
    rows = [
        [
            name,
            str(timing),
            f"{timing.ratio_to(whole):.2f}",
            f"{memory[name] / 2**20:.0f}",
            f"{memory[name] / memory['one batch']:.2f}",
        ]
        for name, timing in timings.items()
    ]
    report([section("Ranking over micro-batches: cpu", HEADER, rows, NOTE)], arguments.output)


if __name__ == "__main__":
    main()
