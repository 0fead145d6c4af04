"""An exported file finds what PyTorch finds, or is not written.

The oracle is the checkpoint's model, run by `detect`; its weights are random, with a picture for each size.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import export
from data.images import read_upright
from detector.builders.network import build_model
from detector.checkpoint import save_checkpoint
from detector.config import EvalConfig
from detector.config.file import apply_overrides, parse_config
from detector.evaluation.checkpoint import OpenCheckpoint, open_checkpoint
from detector.export.agreement import Found, compare
from detector.export.check import (
    Picture,
    as_batch,
    batches,
    check_detections,
    check_raw,
    found_by,
    found_by_model,
    normalised,
    pictures,
)
from detector.export.formats import FORMATS, METADATA_FILE, Run, torch_serves
from detector.export.metadata import metadata
from detector.retinanet import IMAGENET_MEAN, IMAGENET_STD
from errors import InputError
from tests.builders import TINY_MODEL, coco_dict, write_coco, write_image
from tests.runs import assert_refused, call, listing

pytestmark = pytest.mark.xdist_group("export")  # an export to ONNX is slow

ROOT = Path(export.__file__).parent
CLASSES = ["cat", "dog", "Zebrafink ü"]
SETTINGS = ("eval.topk_candidates=150", "eval.detections_per_img=30", "eval.score_threshold=0.998")
KNOTS = [  # of each class
    {"logits": [-3.0, 0.0, 1.0, 4.0], "probabilities": [0.05, 0.2, 0.6, 0.9]},
    {"logits": [0.0], "probabilities": [0.3]},
    {"logits": [-1.0, 9.0], "probabilities": [0.1, 0.5]},
]
SIZES = [(1, 96, 128), (3, 96, 128), (1, 61, 75), (3, 150, 41)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """best.pt, a model of three classes with random weights; the set that it names; picture.png."""
    folder = tmp_path_factory.mktemp("export")
    content = coco_dict([[[4.0, 5.0, 20.0, 18.0]], []])
    content["categories"].append({"id": 9, "name": CLASSES[2]})
    write_coco(folder / "set", content, content)
    write_image(folder / "picture.png", 90, 120)
    words = [*TINY_MODEL, *SETTINGS, f"data.root={folder / 'set'}"]
    words.append("data.transforms.eval=[{ResizeWithin: {long: 96, short: 80}}]")
    config = parse_config(apply_overrides({"data": {"format": "coco"}}, words), "the test")
    torch.manual_seed(0)
    model = build_model(config.model, len(CLASSES), pretrained=False)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):  # statistics that folding must keep
            tensor.normal_(std=0.1)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    for head, spread in ((model.class_head, 0.3), (model.box_head, 0.1)):
        torch.nn.init.normal_(head.output.weight, std=spread)  # scores far apart
    torch.nn.init.zeros_(model.class_head.output.bias)
    per_class = {
        "cat": {"best_f1": 0.8, "best_f1_threshold": 0.25},
        "dog": {"best_f1": -1, "best_f1_threshold": -1},
    }
    checkpoint = {
        "format": 1, "model": model.state_dict(), "config": config.model_dump(mode="json"), "step": 1,
        "epoch": 1, "classes": CLASSES, "category_ids": [3, 7, 9], "calibration": KNOTS,
        "metrics": {"per_class": per_class},
    }  # fmt: skip
    torch.save(checkpoint, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def opened(place: Path) -> OpenCheckpoint:
    opened = open_checkpoint(place / "best.pt", [])
    opened.model.eval()
    return opened


def require(form: str) -> None:
    """Skip the test if the format cannot be written here."""
    if not torch_serves(form):
        pytest.skip(f"PyTorch {torch.__version__} is too old")
    for package in FORMATS[form].needs:
        pytest.importorskip(package)


@pytest.fixture(scope="module", params=["torchscript", "onnx"])
def exported(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    """The name of a format and a file in it, written by the command line."""
    require(request.param)
    file = place / f"model{FORMATS[request.param].suffix}"
    outcome = call(export.main, "best.pt", "--format", request.param, "--output", file.name, cwd=place)
    assert (outcome.code, outcome.err) == (0, "")
    assert re.search(r"checked against PyTorch: \d+ detections", outcome.out)
    return request.param, file


def images(batch: int, height: int, width: int) -> NDArray[np.uint8]:
    """Blocks of noise, different in each image; the last of several images is black."""
    rng = np.random.default_rng(height)
    blots = rng.integers(0, 256, (batch, 3, height // 10 + 1, width // 10 + 1), dtype=np.uint8)
    blots[1:][-1:] = 0
    return blots.repeat(10, 2).repeat(10, 3)[:, :, :height, :width].copy()


def test_the_file_finds_what_pytorch_finds(opened: OpenCheckpoint, exported: tuple[str, Path]) -> None:
    """One image and three, at sizes that the exporter has not seen, multiples of the stride or not."""
    form, file = exported
    run = FORMATS[form].read(file.read_bytes())
    counts = []
    for size in SIZES:
        pixels = images(*size)
        expected, found = found_by_model(opened, pixels), found_by(run, pixels)
        for one, other in zip(expected, found, strict=True):
            agreement = compare(one, other, max(size), opened.config.eval)
            assert agreement.unexplained == 0
            assert agreement.by_rounding <= 1
            assert np.all(np.diff(other.scores) <= 0)
            counts.append(len(other.scores))
    assert 0 in counts  # the case has images without detections, with some, and with too many
    assert 30 in counts
    assert any(0 < count < 30 for count in counts)


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_soft_nms_in_the_file(place: Path, tmp_path: Path, form: str) -> None:
    require(form)
    words = ["eval.nms=soft", "eval.score_threshold=0.9", "eval.detections_per_img=7"]
    outcome = call(
        export.main, "best.pt", *words, "--format", form, "--output", str(tmp_path / "a"), cwd=place
    )
    assert outcome.code == 0, outcome.err
    run, plain = FORMATS[form].read((tmp_path / "a").read_bytes()), open_checkpoint(place / "best.pt", words)
    hard = open_checkpoint(place / "best.pt", words[1:])
    for size in SIZES[1:3]:
        pixels = images(*size)
        expected, dropped = found_by_model(plain, pixels), found_by_model(hard, pixels)
        assert any(
            not np.array_equal(one.scores, other.scores) for one, other in zip(expected, dropped, strict=True)
        )
        for one, other in zip(expected, found_by(run, pixels), strict=True):
            np.testing.assert_allclose(other.boxes, one.boxes, atol=1e-3)
            np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
            assert np.array_equal(other.labels, one.labels)


def test_soft_nms_is_checked_on_a_picture_of_one_colour(place: Path, tmp_path: Path) -> None:
    """Scores that are equal to the last digit may come in any order, with no difference of the models."""
    Image.new("RGB", (600, 500), "white").save(tmp_path / "white.png")
    words = [
        "eval.nms=soft",
        "eval.score_threshold=0",
        "eval.topk_candidates=1000",
        "data.transforms.eval=[]",
    ]
    words += ["eval.detections_per_img=100", "--format", "torchscript", "--check"]
    words += [str(tmp_path / "white.png"), "--output", str(tmp_path / "a")]
    outcome = call(export.main, "best.pt", *words, cwd=place)
    assert outcome.code == 0, outcome.err


def test_what_is_beyond_the_count_is_empty(exported: tuple[str, Path]) -> None:
    form, file = exported
    boxes, scores, labels, count = FORMATS[form].read(file.read_bytes())(images(3, 96, 128))
    assert (boxes.shape, scores.shape, labels.shape, count.shape) == ((3, 30, 4), (3, 30), (3, 30), (3,))
    assert (boxes.dtype, scores.dtype) == (np.float32, np.float32)
    assert (labels.dtype, count.dtype) == (np.int64, np.int64)
    beyond = np.arange(30) >= count[:, None]
    assert beyond.any()
    assert not boxes[beyond].any()
    assert not scores[beyond].any()
    assert (labels[beyond] == -1).all()
    assert (labels[~beyond] >= 0).all()


def read_metadata(form: str, file: Path) -> dict[str, Any]:
    if form == "onnx":
        import onnxruntime

        texts = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        return {name: json.loads(text) for name, text in texts.items()}
    extra = {METADATA_FILE: ""}
    torch.jit.load(file, _extra_files=extra)
    return json.loads(extra[METADATA_FILE])


def test_the_file_says_what_its_numbers_mean(exported: tuple[str, Path]) -> None:
    form, file = exported
    told = read_metadata(form, file)
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert told == {
        "project": "aploss-detector",
        "version": version[1],
        "outputs": "detections",
        "classes": CLASSES,
        "category_ids": [3, 7, 9],
        "thresholds": [0.25, 0.5, 0.5],
        "calibrated": True,
        "calibration": KNOTS,
        "resize": [{"ResizeWithin": {"long": 96, "short": 80}}],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "box_std": [0.1, 0.1, 0.2, 0.2],
        "score_threshold": 0.998,
        "topk_candidates": 150,
        "nms": "hard",
        "nms_threshold": 0.5,
        "detections_per_img": 30,
        "tile": None,
        "tile_overlap": None,
    }


def test_soft_nms_has_no_threshold_to_tell_but_that_of_joining_tiles(opened: OpenCheckpoint) -> None:
    def told(**settings: object) -> tuple[str, ...]:
        config = opened.config
        soft = config.model_copy(update={"eval": config.eval.model_copy(update={"nms": "soft", **settings})})
        values = metadata(replace(opened, config=soft), raw=False)
        return tuple(values[name] for name in ("nms", "nms_threshold", "tile", "tile_overlap"))

    assert told() == ('"soft"', "null", "null", "null")
    assert told(tile=64, tile_overlap=16) == ('"soft"', "0.5", "64", "16")


@pytest.mark.parametrize("outputs", ["detections", "raw"])
def test_a_torchscript_file_refuses_pixels_of_another_kind(place: Path, tmp_path: Path, outputs: str) -> None:
    """Floats from 0 to 1 would be black, a grey picture be used three times. ONNX refuses them itself."""
    file = tmp_path / "model.torchscript"
    words = ["--raw"] * (outputs == "raw")
    words += ["--format", "torchscript", "--output", str(file)]
    assert call(export.main, "best.pt", *words, cwd=place).code == 0
    model = torch.jit.load(file)
    of_pixels = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    given = of_pixels if outputs == "detections" else of_pixels.float()
    model(given)
    other = of_pixels.float() if outputs == "detections" else of_pixels
    for images in (other, given[:, :1], given[0]):
        with pytest.raises(torch.jit.Error, match=r"images must be .* \[B, 3, H, W\]"):
            model(images)


def test_an_onnx_file_is_free_of_the_exporters_notes(exported: tuple[str, Path]) -> None:
    """They name the folders of the machine. The free sizes of the input have names."""
    form, file = exported
    if form == "torchscript":
        pytest.skip("of ONNX alone")
    import onnx

    assert str(ROOT).encode() not in file.read_bytes()
    model = onnx.load(file)
    (given,) = model.graph.input
    sides = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [18]


def test_raw_gives_what_the_heads_say(place: Path, opened: OpenCheckpoint) -> None:
    """In TorchScript, which is fast to write; an ONNX file is checked in the same way when it is written."""
    form = "torchscript"
    outcome = call(export.main, "best.pt", "--format", form, "--raw", "--output", "raw", cwd=place)
    assert (outcome.code, outcome.err) == (0, "")
    assert read_metadata(form, place / "raw")["outputs"] == "raw"
    run = FORMATS[form].read((place / "raw").read_bytes())
    for size in SIZES[1:3]:
        pixels = images(*size)
        batch = as_batch(pixels)
        with torch.no_grad():
            expected = opened.model(batch.images, batch.sizes)
        logits, deltas, anchors = run(normalised(pixels))
        assert np.array_equal(anchors, expected.anchors.numpy())
        np.testing.assert_allclose(logits, expected.logits.numpy(), atol=1e-4)
        np.testing.assert_allclose(deltas, expected.deltas.numpy(), atol=1e-4)


def test_scores_without_calibration(place: Path, tmp_path: Path) -> None:
    """Nor are more detections expected than there are candidates."""
    words = ["eval.calibrate=false", "eval.score_threshold=0", "eval.topk_candidates=4"]
    file = tmp_path / "plain.torchscript"
    outcome = call(
        export.main, "best.pt", *words, "--format", "torchscript", "--output", str(file), cwd=place
    )
    assert outcome.code == 0, outcome.err
    run, plain = FORMATS["torchscript"].read(file.read_bytes()), open_checkpoint(place / "best.pt", words)
    pixels = images(1, 96, 128)
    (one,), (other,) = found_by_model(plain, pixels), found_by(run, pixels)
    assert 0 < len(one.scores) <= 20  # 4 on each of five levels
    assert compare(one, other, 128, EvalConfig(detections_per_img=30)).unexplained == 0


def test_a_generated_picture_stands_in_for_a_set_that_is_not_there(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["data.root=nowhere", "eval.score_threshold=0", "--format", "torchscript", "--output"]
    for more, warnings in (((), 1), (("--check", "picture.png"), 0)):
        caplog.clear()
        assert (
            call(export.main, "best.pt", *words, str(tmp_path / f"a{warnings}"), *more, cwd=place).code == 0
        )
        found = [record.getMessage() for record in caplog.records]
        assert len(found) == warnings
        assert all("generated picture" in text and "nowhere does not exist" in text for text in found)


def test_a_check_that_finds_nothing_says_so(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["eval.score_threshold=1", "--format", "torchscript", "--output", str(tmp_path / "a")]
    assert call(export.main, "best.pt", *words, cwd=place).code == 0
    assert "nothing was detected" in caplog.text


@pytest.fixture(scope="module")
def eager(place: Path) -> OpenCheckpoint:
    """A model that finds something in any picture."""
    return open_checkpoint(place / "best.pt", ["eval.score_threshold=0.9"])


@pytest.fixture(scope="module")
def shown(place: Path) -> list[Picture]:
    """Two pictures of 120 x 90 px, which become 96 x 72."""
    write_image(place / "other.png", 90, 120, seed=1)
    names = ("picture.png", "other.png")
    return [Picture(name, read_upright(place / name, name)) for name in names]


def as_file(opened: OpenCheckpoint, spoil: Callable[[NDArray[np.uint8], list[Found]], None]) -> Run:
    """A run that returns what the model itself finds, after `spoil` has seen and changed it."""

    def run(images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        found = found_by_model(opened, images)
        spoil(images, found)
        counts = np.array([len(one.scores) for one in found])
        boxes, scores = np.zeros((len(found), 30, 4)), np.zeros((len(found), 30))
        labels = np.zeros((len(found), 30), np.int64)
        for i, (one, n) in enumerate(zip(found, counts, strict=True)):
            boxes[i, :n], scores[i, :n], labels[i, :n] = one.boxes, one.scores, one.labels
        return [boxes, scores, labels, counts]

    return run


def lose_one(found: list[Found]) -> None:
    """Drop the best detection of the first image."""
    found[0] = Found(found[0].boxes[1:], found[0].scores[1:], found[0].labels[1:])


def test_what_differs_in_a_batch_of_three_of_an_odd_size_alone_is_refused(
    eager: OpenCheckpoint, shown: list[Picture]
) -> None:
    """73 x 55 px: three quarters of 96 x 72, made odd."""

    def spoil(images: NDArray[np.uint8], found: list[Found]) -> None:
        if images.shape == (3, 3, 55, 73):
            lose_one(found)

    with pytest.raises(
        InputError, match=r"^three pictures of 73 x 55 px, picture\.png first: .* differ in 1 of"
    ):
        check_detections(eager, as_file(eager, spoil), shown)


def test_the_check_sums_up_all_pictures(eager: OpenCheckpoint, shown: list[Picture]) -> None:
    """The boxes of the first picture are 4e-4 px off, which counts as the same."""
    counts: list[int] = []

    def spoil(images: NDArray[np.uint8], found: list[Found]) -> None:
        if not counts:
            found[0].boxes[:, 1] += 4e-4
        counts.extend(len(one.scores) for one in found)

    agreement = check_detections(eager, as_file(eager, spoil), shown)
    assert len(counts) == 5 and all(counts[:2])
    assert (agreement.detections, agreement.unexplained) == (sum(counts), 0)
    assert agreement.box_px == pytest.approx(4e-4)


@pytest.mark.parametrize("nms", ["hard", "soft"])
def test_what_differs_in_the_very_picture_and_not_with_noise_is_a_matter_of_ties(
    place: Path, shown: list[Picture], nms: str
) -> None:
    opened = open_checkpoint(place / "best.pt", [f"eval.nms={nms}", "eval.score_threshold=0.9"])
    seen: list[NDArray[np.uint8]] = []

    def spoil(images: NDArray[np.uint8], found: list[Found]) -> None:
        seen.append(images)
        if len(seen) in spoiled:
            lose_one(found)

    spoiled = {1}
    assert check_detections(opened, as_file(opened, spoil), shown).unexplained == 0
    assert np.abs(seen[1].astype(int) - seen[0]).max() == 2
    seen.clear()
    spoiled = {1, 2}
    with pytest.raises(InputError, match=r"^picture\.png: .* differ in 1 of"):
        check_detections(opened, as_file(opened, spoil), shown)


@pytest.mark.parametrize("what", ["logits", "deltas", "anchors"])
def test_raw_outputs_may_differ_by_rounding_and_no_more(
    opened: OpenCheckpoint, shown: list[Picture], what: str
) -> None:
    """By 1e-4 of the largest value: half of that passes, twice as much does not."""

    def off_by(part: float) -> Run:
        def run(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
            mean, std = (np.reshape(v, (3, 1, 1)) for v in (IMAGENET_MEAN, IMAGENET_STD))
            batch = as_batch((255 * (images * std + mean)).round().astype(np.uint8))
            with torch.no_grad():
                found = opened.model(batch.images, batch.sizes)
            outputs = {name: getattr(found, name).numpy().copy() for name in ("logits", "deltas", "anchors")}
            outputs[what].flat[7] += part * np.abs(outputs[what]).max()
            return list(outputs.values())

        return run

    assert check_raw(opened, off_by(5e-5), shown) == pytest.approx(5e-5, rel=0.1)
    with pytest.raises(InputError, match=rf"^picture\.png: the {what} of the exported model .* differ"):
        check_raw(opened, off_by(2e-4), shown)


def test_a_file_that_differs_is_not_left_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph without NMS; the file that existed before is unchanged."""
    (place / "old.torchscript").write_text("old aploss-detector")
    monkeypatch.setattr("detector.export.formats.keep_best", keep_everything)
    words = ("best.pt", "eval.score_threshold=0", "--format", "torchscript", "--output", "old.torchscript")
    assert_refused(export.main, words, place, "PyTorch's differ", "nothing was written")
    assert (place / "old.torchscript").read_text() == "old aploss-detector"


def keep_everything(
    boxes: torch.Tensor,
    ranks: torch.Tensor,
    labels: torch.Tensor,
    valid: torch.Tensor,
    classes: int,
    iou_threshold: float,
    most: int,
) -> torch.Tensor:
    return valid


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nowhere.pt",), ("nowhere.pt", "does not exist")),
        (("picture.png",), ("picture.png", "is not a checkpoint")),
        (("best.pt", "--output", "set"), ("--output", "set is a folder")),
        (("best.pt", "--output", "best.pt"), ("--output", "is also an input of this command")),
        (
            ("best.pt", "--output", "m.onnx"),
            ("m.onnx has the ending of --format onnx, but --format is torchscript",),
        ),
        (("best.pt", "--output", "picture.png"), ("--output", "picture.png exists", "in .torchscript")),
        (
            ("best.pt", "--output", "other.torchscript"),
            ("other.torchscript exists and is not an earlier export",),
        ),
        (("best.pt", "train.amp=bf16"), ("train.amp=bf16", "float32")),
        (("best.pt", "train.device=cuda"), ("train.device=cuda", "CPU")),
        (("best.pt", "--output", "nowhere/m.torchscript"), ("--output", "the folder nowhere does not exist")),
        (("best.pt", "--check", "nowhere.jpg"), ("nowhere.jpg", "does not exist")),
        (("best.pt", "--check", "best.pt"), ("best.pt", "image")),
        (("best.pt", "eval.nms_iou=0.5"), ("'eval.nms_iou'",)),
        (("best.pt", "eval.nms=0.5"), ("eval.nms", "soft")),
        (("best.pt", "model.head_width=32"), ("model.head_width", "16")),
    ],
)
def test_what_cannot_be_exported_is_refused(
    place: Path, words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    (place / "other.torchscript").write_bytes(b"a model of somebody else's")
    assert_refused(export.main, (*words, "--format", "torchscript"), place, *named)


def test_the_name_of_the_file_tells_the_format(place: Path) -> None:
    words = ("best.pt", "--check", "picture.png")
    assert call(export.main, *words, "--output", "named.torchscript", cwd=place).code == 0
    torch.jit.load(place / "named.torchscript")
    assert_refused(export.main, (*words, "--output", "model.bin"), place, "model.bin", "--format")


def test_a_pytorch_too_old_for_the_format_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.export.formats.torch.__version__", "2.7.1+cpu")
    assert_refused(export.main, ("best.pt", "--format", "onnx"), place, "PyTorch 2.8 or newer", "2.7.1+cpu")


@pytest.mark.skipif(not torch_serves("onnx"), reason="PyTorch is too old")
def test_missing_packages_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.export.formats.find_spec", lambda name: None if "script" in name else 1)
    before = listing(place)
    outcome = call(export.main, "best.pt", cwd=place)
    assert outcome.code == 2
    assert outcome.err == (
        "error: --format onnx needs onnxscript: python -m pip install -r requirements-export.txt\n"
    )
    assert listing(place) == before


@pytest.mark.skipif(not torch_serves("onnx"), reason="PyTorch is too old")
def test_packages_that_do_not_work_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for another Python, say; and an exporter that needs what an old onnxscript lacks."""

    def broken(name: str) -> None:
        if name == "onnxruntime":
            raise ImportError("no such symbol")

    words = ("best.pt", "--format", "onnx")
    with monkeypatch.context() as patch:
        patch.setattr("detector.export.formats.import_module", broken)
        assert_refused(
            export.main, words, place, "onnxruntime is installed but", "no such symbol", "--upgrade"
        )

    def old(*arguments: object, **options: object) -> None:
        raise ModuleNotFoundError("No module named 'onnxscript._framework_apis'")

    monkeypatch.setattr("torch.onnx.export", old)
    assert_refused(export.main, words, place, "onnxscript._framework_apis", "--upgrade")


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_a_folder_may_have_a_name_in_no_encoding(place: Path, tmp_path: Path, form: str) -> None:
    require(form)
    folder = tmp_path / os.fsdecode(b"x\xff y")
    folder.mkdir()
    shutil.copy(place / "best.pt", folder)
    words = ("best.pt", "--check", str(place / "picture.png"), "--format", form, "--raw")
    outcome = call(export.main, *words, cwd=folder)
    assert outcome.code == 0, outcome.err
    assert {path.name for path in folder.iterdir()} == {"best.pt", f"best.{form}"}


def test_half_a_character_in_a_name_travels(place: Path) -> None:
    """Half an emoji, which JSON allows: it is written as an escape."""
    content = torch.load(place / "best.pt", weights_only=True)
    content["classes"] = ["caf\ud83d", *content["classes"][1:]]
    save_checkpoint(place / "cut.pt", content)
    words = ("cut.pt", "--check", "picture.png", "--format", "torchscript", "--output", "cut.torchscript")
    assert call(export.main, *words, cwd=place).code == 0
    extra = {"metadata.json": ""}
    torch.jit.load(place / "cut.torchscript", _extra_files=extra)
    assert json.loads(extra["metadata.json"])["classes"][0] == "caf\ud83d"


def test_of_large_pictures_the_check_looks_at_a_tile(
    place: Path, eager: OpenCheckpoint, shown: list[Picture]
) -> None:
    """96 x 72 px and tiles of 64: a file, which makes no tiles, would find other boxes in the whole."""
    tiled = open_checkpoint(
        place / "best.pt", ["eval.score_threshold=0.9", "eval.tile=64", "eval.tile_overlap=16"]
    )
    wholes, parts = ([images for _, images in batches(one, shown)] for one in (eager, tiled))
    for whole, part in zip(wholes[:2], parts[:2], strict=True):
        assert np.array_equal(part, whole[:, :, 4:68, 16:80])
    assert [part.shape for part in parts[2:]] == [(3, 3, 49, 49)]
    agreement = check_detections(tiled, as_file(eager, lambda images, found: None), shown)
    assert agreement.detections > 0


def test_pictures_are_read_one_at_a_time(
    eager: OpenCheckpoint, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write_image(place / "many" / f"{number}.png", 90, 120, seed=number)
    given = pictures(eager, [str(place / "many")])
    read: list[str] = []

    def note(path: Path, name: str) -> NDArray[np.uint8]:
        read.append(path.name)
        return read_upright(path, name)

    monkeypatch.setattr("detector.export.check.read_upright", note)
    for count, (name, images) in enumerate(batches(eager, given), start=1):
        assert len(read) == min(count, 5)
        assert images.shape == ((1, 3, 72, 96) if count <= 5 else (3, 3, 55, 73)), name
