"""The Python interface gives what evaluation gives, whatever form an image has."""

import io
import json
import pickle
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import batched_nms, clip_boxes_to_image

import train
from data.images import read_image
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint, open_checkpoint
from detector.evaluation.inference import best_first
from detector.predictor import Detector, ImageDetections
from detector.thresholds import parse_thresholds
from errors import InputError
from tests.builders import TINY_MODEL, coco_of_sizes
from tests.oracles import iou
from tests.runs import call

SIZES = ((48, 64), (96, 64), (48, 64), (40, 90), (96, 64))  # height, width: they share batches unevenly


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on images of several sizes, evaluated at 50 px in batches of two."""
    folder = tmp_path_factory.mktemp("predictor")
    coco_of_sizes(folder / "set", SIZES)
    (folder / "tiny.yaml").write_text(
        f"data:\n  format: coco\n  root: {folder / 'set'}\n"
        "  transforms: {eval: [ResizeWithin: {long: 50}]}\n"
        "train: {epochs: 1}\neval: {batch_size: 2}\n"
    )
    assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def evaluated(run: Path) -> CheckpointScores:
    return evaluate_checkpoint(run, [], "val")


@pytest.fixture(scope="module")
def detector(run: Path) -> Detector:
    return Detector.load(run, device="cpu")


def same(one: ImageDetections, other: ImageDetections) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(astuple(one), astuple(other), strict=True))


def test_a_list_of_files_gives_what_evaluation_finds(detector, evaluated) -> None:
    """To the last digit: boxes in pixels of the files, calibrated scores, the same batches."""
    found = detector([str(file) for file in evaluated.records.files])
    predictions = best_first(evaluated.scores.predictions)
    assert len(predictions.rows) > 0
    for row, image in enumerate(found):
        mine = predictions.rows == row
        np.testing.assert_array_equal(image.boxes, predictions.boxes[mine])
        np.testing.assert_array_equal(image.scores, predictions.scores[mine])
        np.testing.assert_array_equal(image.labels, predictions.labels[mine])
        assert image.names == tuple(("cat", "dog")[label] for label in image.labels)
        assert (np.diff(image.scores) <= 0).all()


def test_images_may_come_from_anything_that_gives_them_one_by_one(detector, evaluated) -> None:
    files = [Path(file) for file in evaluated.records.files]
    once = detector(files)
    assert all(map(same, detector(path for path in files), once))
    assert detector(iter(())) == []
    for wrong in (None, 3, bytearray(b"JPEG"), io.BytesIO(b"JPEG")):
        with pytest.raises(InputError, match=f"or several of these, got {type(wrong).__name__}"):
            detector(wrong)


def test_the_bytes_of_a_file_are_taken_as_the_file(detector, tmp_path: Path) -> None:
    """They are turned upright too, and refused if incomplete."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "turned.png", exif=exif)
    content = (tmp_path / "turned.png").read_bytes()
    expected = detector(tmp_path / "turned.png")
    assert len(expected) > 0 and same(detector(content), expected)
    assert all(map(same, detector([content, content]), detector([tmp_path / "turned.png"] * 2)))
    assert expected.draw(content).size == expected.draw(tmp_path / "turned.png").size
    for broken in (b"", content[:500]):
        with pytest.raises(InputError, match="in the bytes of image 1 cannot be read"):
            detector([content, broken])


def test_a_fork_is_told_instead_of_waiting_for_ever(detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a forked worker of a server: PyTorch's threads are missing in the fork."""
    pixels, sent = np.zeros((48, 64, 3), np.uint8), pickle.dumps(detector)
    monkeypatch.setattr("os.getpid", lambda: -1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(InputError, match="before this process was forked"):
            detector(pixels)
        pickle.loads(sent)(pixels)  # as a spawned process gets it
        torch.set_num_threads(1)
        detector(pixels)
    finally:
        torch.set_num_threads(threads)


def test_thresholds_may_be_given_for_all_or_by_name(detector, evaluated) -> None:
    found = detector(str(evaluated.records.files[0]))
    middle = float(np.median(found.scores[found.labels == 0]))
    cats = found.above({"cat": middle, "dog": 0.0})
    kept = (found.labels != 0) | (found.scores >= middle)
    assert 0 < kept.sum() < len(found)
    assert same(cats, found.above([middle, 0.0]))
    np.testing.assert_array_equal(cats.scores, found.scores[kept])
    with pytest.raises(InputError, match="1 are given, but there are 2 classes"):
        found.above([0.5])


def test_what_was_found_is_written_as_json(detector, evaluated) -> None:
    found = detector(str(evaluated.records.files[0]))
    entries = json.loads(json.dumps(found.as_dicts()))
    assert [entry["score"] for entry in entries] == found.scores.tolist()
    assert [entry["box"] for entry in entries] == found.boxes.tolist()
    assert [(entry["label"], entry["name"]) for entry in entries] == [
        (label, detector.classes[label]) for label in found.labels
    ]


def test_a_detector_may_be_sent_to_another_process(detector, evaluated) -> None:
    file = str(evaluated.records.files[0])
    assert same(pickle.loads(pickle.dumps(detector))(file), detector(file))


def test_a_file_gives_what_the_network_says_of_its_pixels(run: Path, evaluated: CheckpointScores) -> None:
    """Oracles: OpenCV's reading and resizing, torchvision's decoding and NMS, one after another by hand for
    the picture of 90 x 40 px, which becomes 50 x 22. Without calibration."""
    file, opened = evaluated.records.files[3], open_checkpoint(run, [])
    small = cv2.resize(cv2.imread(file)[:, :, ::-1], (50, 22), interpolation=cv2.INTER_AREA)
    padded = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    padded[0, :, :22, :50] = torch.from_numpy(small).permute(2, 0, 1)
    with torch.no_grad():
        outputs = opened.model.eval()(padded, torch.tensor([[22, 50]]))
    decoded = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(outputs.deltas[0], outputs.anchors)
    boxes = clip_boxes_to_image(decoded, (22, 50)).repeat(2, 1).double()  # for each of the two classes
    logits, labels = outputs.logits[0].T.flatten().double(), torch.arange(2).repeat_interleave(len(decoded))
    best = batched_nms(boxes, logits, labels, 0.5)[:5].numpy()
    found = Detector.load(run, "cpu", ["eval.calibrate=false"])(file)
    scale = (90 / 50, 40 / 22, 90 / 50, 40 / 22)
    np.testing.assert_allclose(found.boxes[:5], boxes.numpy()[best] * scale, atol=1e-3)
    assert found.labels[:5].tolist() == labels.numpy()[best].tolist()
    np.testing.assert_allclose(found.scores[:5], logits.sigmoid().numpy()[best], rtol=1e-5)


def test_the_kind_of_an_image_makes_no_difference(detector, evaluated) -> None:
    """This includes an array that is not contiguous: the flip of a flipped picture."""
    path, size = Path(evaluated.records.files[3]), SIZES[3]
    pixels = read_image(path, size)
    expected = detector(path)
    assert len(expected) > 0
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (str(path), pixels, pixels[::-1].copy()[::-1], Image.open(path), tensor):
        assert same(detector(image), expected)
        assert same(detector([image])[0], expected)


def test_a_pil_image_shares_batches_with_its_like_alone(
    detector: Detector, evaluated: CheckpointScores
) -> None:
    """A turned picture has another shape: each gives what it gives alone."""
    image = Image.open(evaluated.records.files[3])
    turned = np.rot90(np.asarray(image)).copy()
    assert all(map(same, detector([image, turned]), (detector(image), detector(turned))))
    assert detector.batches_of(np.array([SIZES[3], SIZES[3][::-1]])) == [[0], [1]]


def test_thresholds_are_those_of_the_evaluation(run, detector, evaluated) -> None:
    """A class without any right detection has no best threshold: it gets 0.5."""
    bare = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    metrics = bare["metrics"]
    assert list(metrics["per_class"]) == ["cat", "dog"]
    best = [evaluated.scores.coco.per_class[name].best_threshold for name in ("cat", "dog")]
    found = {
        name: {"best_f1": 0.4, "best_f1_threshold": at} for name, at in zip(("cat", "dog"), best, strict=True)
    }
    cat, dog = {"best_f1": 0.4, "best_f1_threshold": 0.3}, {"best_f1": 0.0, "best_f1_threshold": 0.0004}
    for per_class, expected in ((found, best), ({"cat": cat, "dog": dog}, [0.3, 0.5]), ({}, [0.5, 0.5])):
        torch.save({**bare, "metrics": {"per_class": per_class}}, run.parent / "other.pt")
        assert Detector.load(run.parent / "other.pt").thresholds.tolist() == expected
    # Raw scores have other thresholds, at which the same detections pass.
    torch.save(
        {**bare, "metrics": {"per_class": {"cat": cat | {"best_f1_threshold": 0.31}}}},
        run.parent / "other.pt",
    )
    calibrated = Detector.load(run.parent / "other.pt")
    raw = Detector.load(run.parent / "other.pt", overrides=["eval.calibrate=false"])
    back = open_checkpoint(run, []).calibration.maps[0](raw.thresholds[0])
    np.testing.assert_allclose(back, calibrated.thresholds[0], rtol=1e-8)
    file = evaluated.records.files[0]
    assert not np.array_equal(raw(file).scores, detector(file).scores)


def test_settings_of_the_training_change_nothing_and_are_told_so(run, caplog) -> None:
    words = [
        "train.epochs=3",
        "train.amp=off",
        "eval.batch_size=2",
        "loss.name=focal",
        "eval.detections_per_img=9",
    ]
    open_checkpoint(run, words)
    (message,) = caplog.messages
    assert message.startswith("train.epochs, loss.name: used only in training, without effect")


def test_another_nms_than_that_of_the_calibration_is_said(run, caplog) -> None:
    trained = open_checkpoint(run, []).config.eval
    assert trained.nms == "hard"
    other = trained.nms_threshold + 0.1
    for words in ([], [f"eval.nms_threshold={other}", "eval.calibrate=false"], ["eval.detections_per_img=3"]):
        open_checkpoint(run, words)
    assert not caplog.text
    open_checkpoint(run, [f"eval.nms_threshold={other}"])
    then = f"calibrated for eval.nms_threshold={trained.nms_threshold}, and are too high"
    assert f"eval.nms_threshold={other}: scores and thresholds are {then}" in caplog.text
    caplog.clear()
    open_checkpoint(run, ["eval.nms=soft"])
    assert "eval.nms=soft: scores and thresholds are calibrated for eval.nms=hard, and" in caplog.text


def test_images_of_another_size_than_those_of_the_calibration_are_said(run, caplog) -> None:
    open_checkpoint(run, ["data.image_size=64", "eval.calibrate=false"])
    open_checkpoint(run, ["data.image_size=50"])  # the size that it has anyway
    assert not caplog.text
    open_checkpoint(run, ["data.image_size=64"])
    assert '{"long": 64}}]: scores and thresholds are calibrated for' in caplog.text
    caplog.clear()
    open_checkpoint(run, ["data.transforms.eval=[{ResizeWithin: {long: 60}}]"])
    assert '{"long": 60}}]: scores and thresholds are calibrated for' in caplog.text
    assert '{"long": 50}}], and are too high or too low' in caplog.text


@pytest.mark.parametrize(
    ("amp", "fast", "slow"), [("bf16", False, True), ("bf16", True, False), ("fp16", True, True)]
)
def test_a_precision_of_a_gpu_that_a_cpu_is_slow_in_is_said(
    run, tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch, amp: str, fast: bool, slow: bool
) -> None:
    """Not if the user asks for it explicitly."""
    monkeypatch.setattr("detector.evaluation.checkpoint.cpu_is_fast_in_bf16", lambda: fast)
    content = load_checkpoint(run / "checkpoints" / "best.pt")
    content["config"]["train"]["amp"] = amp
    save_checkpoint(tmp_path / "other.pt", content)
    open_checkpoint(tmp_path / "other.pt", [f"train.amp={amp}"])
    assert not caplog.text
    open_checkpoint(tmp_path / "other.pt", [])
    assert (f"train.amp={amp}, as in the training, takes many times as long" in caplog.text) == slow


def test_the_thresholds_that_detections_carry_are_kept_once(detector, evaluated) -> None:
    """Copies for a thousand classes in 100,000 images would be gigabytes; later results follow a change."""
    files = [str(file) for file in evaluated.records.files[:2]]
    one, other = detector(files)
    later = detector(files[0])
    assert one.thresholds is other.thresholds is later.thresholds
    before = detector.thresholds.copy()
    try:
        detector.thresholds[0] = 0.125
        assert detector(files[0]).thresholds["cat"] == 0.125
        assert one.thresholds["cat"] == before[0]
    finally:
        detector.thresholds[:] = before


def test_a_cut_by_raw_scores_says_what_it_means_in_calibrated_ones(run, caplog) -> None:
    """A user who writes 0.5 means the scores that are shown."""
    calibration = open_checkpoint(run, []).calibration
    open_checkpoint(run, ["eval.score_threshold=0.25", "eval.calibrate=false"])
    assert not caplog.text
    open_checkpoint(run, ["eval.score_threshold=0.25"])
    low, high = (f"{worth:.2g}" for worth in sorted(float(one(np.array(0.25))) for one in calibration.maps))
    cut = "eval.score_threshold=0.25 applies to raw scores: detections with calibrated scores up to"
    assert f"{cut} {low}{f' (for some classes {high})' if low != high else ''} are lost" in caplog.text


def test_thresholds_of_a_training_without_calibration_are_brought_to_its_scale(run, evaluated) -> None:
    """The same detections pass, whichever scale is used."""
    content = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    raw = evaluate_checkpoint(run, ["eval.calibrate=false"], "val").scores.coco
    content["config"]["eval"]["calibrate"] = False
    content["metrics"] = raw.as_json()
    for name, one in content["metrics"][
        "per_class"
    ].items():  # one epoch finds too little to have a threshold
        one |= {"best_f1": 0.4, "best_f1_threshold": raw.per_class[name].best_threshold}
    torch.save(content, run.parent / "raw.pt")
    as_trained = Detector.load(run.parent / "raw.pt")
    calibrated = Detector.load(run.parent / "raw.pt", overrides=["eval.calibrate=true"])
    assert as_trained.thresholds.tolist() == [raw.per_class[n].best_threshold for n in ("cat", "dog")]
    best = [evaluated.scores.coco.per_class[n].best_threshold for n in ("cat", "dog")]
    np.testing.assert_allclose(calibrated.thresholds, best, rtol=1e-12)


def test_above_takes_one_threshold_or_one_for_each_class() -> None:
    boxes = np.arange(12.0).reshape(3, 4)
    found = ImageDetections(boxes, np.array([0.9, 0.5, 0.4]), np.array([0, 1, 0]), ("cat", "dog", "cat"))
    assert found.above(0.5).names == ("cat", "dog")
    assert found.above([0.3, 0.6]).boxes.tolist() == boxes[[0, 2]].tolist()
    nothing = found.above(1.0)
    assert len(nothing) == 0
    for threshold in (0.5, [0.3, 0.6], {"dog": 0.2}):
        assert len(nothing.above(threshold)) == 0
    named = replace(found, thresholds={"cat": 0.5, "dog": 0.5, "yak": 0.5})
    assert named.above([0.3, 0.6, 1]).boxes.tolist() == boxes[[0, 2]].tolist()
    for wrong, problem in (
        ([0.3, 0.6], "2 are given, but there are 3 classes"),
        ([0.3] * 4, "4 are given, but there are 3 classes"),
        (None, "must be numbers"),
        ([0.3, 0.6, float("nan")], "must be numbers"),
        ({"cat": float("nan")}, "must be numbers"),
        ({"cat": "x"}, "must be numbers"),
        ("x", "must be numbers"),
        (np.zeros((3, 1)), "must be numbers"),
    ):
        with pytest.raises(InputError, match=problem):
            named.above(wrong)


def test_above_takes_some_by_name_and_the_detectors_own_for_the_others(detector: Detector, evaluated) -> None:
    """As in predict.py, which refuses an unknown name too."""
    found = detector(evaluated.records.files[0])
    cats, dogs = (found.scores[found.labels == label] for label in (0, 1))
    assert len(cats) > 2 and len(dogs) > 2
    chosen = found.above({"cat": float(np.median(cats))})
    assert (chosen.labels == 0).sum() == (cats >= np.median(cats)).sum()
    assert (chosen.labels == 1).sum() == (dogs >= detector.thresholds[1]).sum()
    assert len(chosen.above({"dog": 0.0, "cat": 0.0})) == len(chosen)
    with pytest.raises(InputError, match="there is no class 'cta'; the classes are cat, dog"):
        found.above({"cta": 0.5})


def test_what_was_found_is_printed_in_a_line() -> None:
    names = ("cat", "dog", "cat", "cat", "dog", "dog")
    scores = np.array([0.987, 0.9, 0.5, 0.25, 0.125, 0.0])
    every = ImageDetections(np.zeros((6, 4)), scores, np.array([0, 1, 0, 0, 1, 1]), names)
    assert f"{every}" == "6 detections: cat 0.99, dog 0.90, cat 0.50, cat 0.25, dog 0.12, ..."
    assert f"{every.above(0.95)}" == "1 detection: cat 0.99"
    assert f"{every.above(1)}" == "0 detections"


def test_an_image_turned_by_its_exif_is_taken_upright(detector, tmp_path: Path) -> None:
    """The boxes are in pixels of the picture as a viewer shows it: the same as for the turned pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert same(detector(tmp_path / "turned.png"), detector(np.rot90(pixels, -1)))


@pytest.mark.parametrize("shape", [(60, 90), (60, 90, 1)])
def test_grey_is_taken_as_rgb_of_three_equal_channels(detector, shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    rgb = np.stack([grey.reshape(60, 90)] * 3, axis=2)
    tensor = torch.from_numpy(grey if grey.ndim == 2 else grey.transpose(2, 0, 1).copy())
    expected = detector(rgb)
    assert len(expected) > 0
    for image in (grey, tensor, Image.fromarray(rgb[:, :, 0])):
        assert same(detector(image), expected)
    assert all(map(same, detector([grey, tensor]), detector([rgb, rgb])))


def test_what_was_found_is_drawn_on_the_image_whatever_it_comes_as(detector, tmp_path: Path) -> None:
    """A file is drawn as a viewer shows it, since its boxes are in pixels of that."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = detector(tmp_path / "turned.png")
    drawn = found.draw(tmp_path / "turned.png")
    assert drawn.size == (400, 600) and drawn.mode == "RGB"
    upright = np.rot90(pixels, -1)
    assert (np.array(drawn) != upright).any()
    for image in (upright, Image.fromarray(upright), torch.from_numpy(upright.copy()).permute(2, 0, 1)):
        assert np.array_equal(found.draw(image), drawn)
    assert np.array_equal(found.above(1.1).draw(upright), upright)
    with pytest.raises(
        InputError, match=r"600 x 400 px, but .* of an image of 400 x 600 px; .*exif_transpose"
    ):
        found.draw(Image.open(tmp_path / "turned.png"))
    with pytest.raises(
        InputError, match=r"64 x 48 px, but these detections are of an image of 400 x 600 px$"
    ):
        found.draw(np.zeros((48, 64, 3), np.uint8))


def test_any_number_of_images_is_looked_at_as_they_come(detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more are taken than the network processes together; the detections are those of a list."""
    monkeypatch.setattr(detector, "batch_size", 2)
    images = [np.random.default_rng(k).integers(0, 256, (48, 64, 3), dtype=np.uint8) for k in range(5)]
    taken: list[int] = []

    def camera() -> Iterator[np.ndarray]:
        for number, image in enumerate(images):
            taken.append(number)
            yield image

    stream = detector.stream(camera())
    first = next(stream)
    assert taken == [0, 1]
    found = [first, *stream]
    with pytest.raises(InputError, match="image 3: an array must be"):
        list(detector.stream([*images[:3], np.zeros((4, 4)), images[3]]))
    with pytest.raises(InputError, match="expected several images, got one"):
        list(detector.stream(images[0]))
    for one, other in zip(found, detector(images), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_no_images_give_no_detections(detector) -> None:
    assert detector([]) == []


WRONG = {
    "float": (np.zeros((4, 4, 3)), "uint8 [H, W, 3] RGB, or grey [H, W], got float64 [4, 4, 3]"),
    "grey float": (np.zeros((4, 4)), "got float64 [4, 4];"),
    "with alpha": (np.zeros((4, 4, 4), np.uint8), "got uint8 [4, 4, 4]"),
    "a line": (np.zeros(4, np.uint8), "got uint8 [4]"),
    "grey floats": (torch.zeros(4, 4), "got float32 [4, 4]"),
    "a batch": (
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        "uint8 [3, H, W], or grey [H, W], got uint8 [2, 3, 8, 8]; give several images",
    ),
    "channels last": (torch.zeros(8, 8, 3, dtype=torch.uint8), "got uint8 [8, 8, 3]"),
    "no pixels": (np.zeros((0, 4, 3), np.uint8), "no pixels: 4 x 0"),
    "missing": ("nowhere.jpg", "nowhere.jpg does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_image_is_refused_and_named(detector, case: str) -> None:
    image, problem = WRONG[case]
    good = np.zeros((8, 8, 3), np.uint8)
    for images in (image, [good, image]):
        with pytest.raises(InputError) as raised:
            detector(images)
        assert problem in str(raised.value)
    if case not in ("missing",):
        assert str(raised.value).startswith("image 1")


def test_a_wrong_device_or_override_is_refused(run) -> None:
    with pytest.raises(InputError, match="device: 'abacus'"):
        Detector.load(run, device="abacus")
    with pytest.raises(InputError, match=r"eval\.nms_threshold"):
        Detector.load(run, overrides=["eval.nms_treshold=0.5"])
    with pytest.raises(InputError, match="does not exist"):
        Detector.load("nowhere.pt")


def test_of_boxes_of_several_classes_on_an_object_the_best_is_left() -> None:
    """Oracle: a loop that follows the definition; boxes of one class may overlap."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 60, (120, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(15, 30, (120, 2))), axis=1)
    labels, scores = rng.integers(0, 3, 120), np.sort(rng.uniform(0, 1, 120))[::-1]
    found = ImageDetections(boxes, scores, labels, tuple("abc"[label] for label in labels))
    for threshold in (0.3, 0.5):
        kept: list[int] = []
        for row in range(120):
            better = [one for one in kept if labels[one] != labels[row]]
            if all(iou(boxes[row].tolist(), boxes[one].tolist()) <= threshold for one in better):
                kept.append(row)
        left = found.one_per_object(threshold)
        assert left.boxes.tolist() == boxes[kept].tolist() and left.scores.tolist() == scores[kept].tolist()
        assert left.names == tuple("abc"[label] for label in left.labels)
        assert 20 < len(left) < 110
    assert len(found.above(1).one_per_object()) == 0


def test_a_batch_has_an_image(detector: Detector) -> None:
    """With none, a stream would silently give nothing."""
    for images in (0, 1.5, "4", True):
        with pytest.raises(InputError, match=f"batch_size must be a whole number of .* got {images!r}"):
            detector.batch_size = images


def test_what_is_set_otherwise_than_it_should_be_is_refused(detector: Detector, run: Path) -> None:
    wanted = f"expected one for each of {len(detector.classes)} classes, got"
    with pytest.raises(InputError, match=f"{wanted} {len(detector.classes) + 1}"):
        detector.thresholds = [0.5] * (len(detector.classes) + 1)
    with pytest.raises(InputError, match=f"{wanted} a single number"):
        detector.thresholds = 0.5
    for scores in ({"cat": 0.5}, ["0.5", "0.2"], [True, False]):
        with pytest.raises(InputError, match="thresholds must be a list of numbers"):
            detector.thresholds = scores
    other = Detector.load(run, device="cpu")
    other.thresholds = [0.25] * len(other.classes)
    assert other.thresholds.tolist() == [0.25] * len(other.classes)
    with pytest.raises(InputError, match="overrides must be a list"):
        Detector.load(run, overrides="eval.nms_threshold=0.6")


@pytest.mark.filterwarnings("error")
def test_arrays_that_must_not_be_written_to_are_taken_without_a_word(detector: Detector) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    expected = detector(pixels)
    pixels.setflags(write=False)
    found = detector(pixels)
    assert same(found, expected)
    assert found != expected and found in {found}  # by identity: an array has no single truth value


def test_thresholds_may_have_exponents_and_spaces_around_names() -> None:
    assert parse_thresholds("1e-3,car=0.5") == {"": 0.001, "car": 0.5}
    assert parse_thresholds("car=0.3, cup =0.6") == {"car": 0.3, "cup": 0.6}
