"""Evaluation during training: each process handles a part of the validation set."""

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.feed import checked
from data.loader import DetectionDataset, load_batch
from data.progress import told_if_long
from data.sample import Batch, DetectionSet
from detector.builders.data import build_cache, build_eval_loader
from detector.builders.device import build_amp
from detector.config import Config
from detector.evaluation.calibration import Calibration, fit_calibration
from detector.evaluation.inference import Predictions, for_inference, join_predictions
from detector.evaluation.pictures import gt_beside_found
from detector.evaluation.score import Scores, predict, score
from detector.retinanet import RetinaNet
from detector.training.processes import Processes
from detector.training.stop import CutShort, StopRequest

_PICTURES = 4  # images shown in TensorBoard


class Validation:
    """The validation set, divided among the processes: every image exactly once.

    The batches are those of a single process, dealt out in turn, so that results are identical to the last
    digit.
    """

    def __init__(
        self, config: Config, records: DetectionSet, device: torch.device, processes: Processes
    ) -> None:
        self.records = records
        self._config = config
        self._device = device
        self._processes = processes
        cache = processes.main_first(lambda: build_cache(config.data, records))  # main first: no locks needed
        self._loader = build_eval_loader(config, records, device, processes.rank, processes.size, cache)
        assert isinstance(self._loader.dataset, DetectionDataset)
        self._dataset = self._loader.dataset

    def detect(self, model: RetinaNet, stop: StopRequest) -> list[Predictions] | None:
        """Detections in this process's batches; None if any process was asked to stop."""
        processes = self._processes
        found: list[Predictions] = []
        loaded: Iterable[Batch] = checked(self._loader)
        if processes.main:  # the others have as many batches, or one less
            loaded = told_if_long(loaded, len(self._loader), "batch", "evaluating")
        batches = predict(self._config, self._ready(model), loaded, self._device)
        try:
            with stop.cutting_short():
                for predictions in batches:
                    found.append(predictions)
                    if processes.stop_announced():
                        break
        except CutShort:
            processes.announce_stop()
        # All agree, so that none waits for one that has stopped.
        stopping = processes.barrier(stopping=bool(stop) or processes.stop_announced())
        return None if stopping else found

    def time_batch(self, model: RetinaNet) -> tuple[float, int]:
        """Seconds for a medium batch, and the number of batches of this process.

        The largest batch, which needs most memory, is run first.
        """
        batches = self._loader.batch_sampler
        assert isinstance(batches, list)
        if not batches:  # fewer batches than processes
            return 0.0, 0
        sizes = self._dataset.pipeline.sizes_of(self.records.sizes)
        ready = self._ready(model)
        by_size = sorted(batches, key=lambda keys: len(keys) * sizes[[key.row for key in keys]].max(0).prod())
        for keys in (by_size[-1], by_size[len(by_size) // 2]):
            batch = load_batch(self._dataset, keys)
            before = time.perf_counter()  # loading is not timed, as it overlaps with computing
            list(predict(self._config, ready, [batch], self._device))
        return time.perf_counter() - before, len(batches)

    def _ready(self, model: RetinaNet) -> RetinaNet:
        return for_inference(model, build_amp(self._config.train, self._device))

    def judge(self, shares: list[list[Predictions]]) -> tuple[Scores, Calibration | None]:
        """Scores of the detections of all processes, given by rank, and the calibration fitted to them."""
        batches = sum(len(share) for share in shares)
        in_order = [shares[i % len(shares)][i // len(shares)] for i in range(batches)]
        scores = score(self._config, self.records, join_predictions(in_order))
        known = scores.coco.material.gt_totals() > 0
        if not known.any():
            return scores, None  # without gt boxes all detections would be false
        calibration = fit_calibration(scores.coco.matched, known)
        return (scores.calibrated(calibration) if self._config.eval.calibrate else scores), calibration

    def pictures(self, scores: Scores) -> dict[str, NDArray[np.uint8]]:
        """The first images, by name, with gt boxes beside detections: uint8 [H, W, 3] each."""
        shown = {}
        for row in range(min(_PICTURES, len(self.records))):
            stem = Path(self.records.files[row]).stem
            shown[f"{row}_{stem}"] = gt_beside_found(self._dataset, row, scores.predictions, scores.coco)
        return shown
