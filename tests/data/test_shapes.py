"""The generated demo set: its files, boxes and frequencies are as promised."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from data import shapes, shapes_scene
from data.shapes import ShapesSpec, draw_picture, ensure_shapes
from data.shapes_scene import CLASSES, class_frequencies
from errors import InputError

SMALL = ShapesSpec(train_images=6, val_images=4, size_px=128, seed=3)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below `folder`, hidden ones too, with the bytes of files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def default_val_pictures() -> list[shapes_scene.Picture]:
    spec = ShapesSpec()
    return [draw_picture(spec, "val", number) for number in range(1, spec.val_images + 1)]


def test_same_spec_gives_the_same_bytes(tmp_path):
    ensure_shapes(tmp_path / "a", SMALL)
    ensure_shapes(tmp_path / "b", SMALL)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    assert sum(name.endswith(".jpg") for name in first) == 10


def test_larger_set_begins_with_the_smaller_one(tmp_path):
    ensure_shapes(tmp_path / "small", SMALL)
    ensure_shapes(tmp_path / "large", replace(SMALL, train_images=8, val_images=5))
    small, large = contents(tmp_path / "small"), contents(tmp_path / "large")
    pictures = [name for name in small if name.endswith(".jpg")]
    assert all(small[name] == large[name] for name in pictures)
    assert len({small[name] for name in pictures}) == 10  # both split and number matter


def test_seed_changes_the_pictures():
    other = draw_picture(replace(SMALL, seed=4), "train", 1).image
    assert not np.array_equal(draw_picture(SMALL, "train", 1).image, other)


def test_pycocotools_reads_what_was_drawn(tmp_path):
    ensure_shapes(tmp_path / "set", SMALL)
    coco = COCO(tmp_path / "set" / "annotations" / "val.json")
    ids = coco.getCatIds()
    assert [coco.cats[id_]["name"] for id_ in ids] == list(CLASSES)
    assert np.diff(ids).max() > 1
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    for image_id, image in coco.imgs.items():
        drawn = draw_picture(SMALL, "val", image_id)
        stored = cv2.imread(str(tmp_path / "set" / "images" / "val" / image["file_name"]))
        assert stored.shape == (image["height"], image["width"], 3) == drawn.image.shape
        assert np.abs(stored.astype(int) - drawn.image).mean() < 8  # JPEG
        annotations = coco.imgToAnns[image_id]
        found = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        np.testing.assert_allclose(found, drawn.boxes)
        assert [CLASSES.index(coco.cats[a["category_id"]]["name"]) for a in annotations] == list(drawn.labels)
        assert all(a["iscrowd"] == 0 for a in annotations)
        assert all(a["area"] == pytest.approx(a["bbox"][2] * a["bbox"][3]) for a in annotations)


def test_boxes_are_tight(monkeypatch):
    """Oracle: where a picture differs from the same picture drawn without its objects."""
    monkeypatch.setattr(shapes_scene, "_SHADOW_STRENGTH", 0.0)  # a shadow is not part of the box
    spec = ShapesSpec()
    pictures = [draw_picture(spec, "val", number) for number in range(1, 46)]
    nothing = (np.zeros((0, 4)), np.zeros(0, np.int64))
    monkeypatch.setattr(shapes_scene, "_draw_objects", lambda canvas, rng, imbalance: nothing)
    excess = []  # pixels by which the differing area exceeds the box on each side
    for number, picture in enumerate(pictures, start=1):
        bare = draw_picture(spec, "val", number).image
        change = np.abs(picture.image.astype(int) - bare).max(axis=2)  # [H, W]
        outside = np.ones(change.shape, bool)
        for box in picture.boxes:
            (x1, y1), (x2, y2) = np.maximum(box[:2].astype(int) - 4, 0), box[2:].astype(int) + 5
            outside[y1:y2, x1:x2] = False
        assert not change[outside].any()  # the blur reaches 4 pixels
        for k, box in enumerate(picture.boxes):
            others = np.delete(picture.boxes, k, axis=0)
            apart = (others[:, :2] > box[2:] + 5) | (others[:, 2:] < box[:2] - 5)
            if apart.any(axis=1).all():
                x1, y1 = np.maximum(box[:2].astype(int) - 4, 0)
                x2, y2 = np.ceil(box[2:]).astype(int) + 4
                near = change[y1:y2, x1:x2]
                y, x = np.nonzero(near > 0.25 * np.percentile(near, 90))
                seen = np.array([x.min() + x1, y.min() + y1, x.max() + 1 + x1, y.max() + 1 + y1])
                excess.append((seen - box) * (-1, -1, 1, 1))
    assert len(excess) > 40
    assert np.max(excess) <= 1  # blur and rounding to whole pixels
    assert np.percentile(excess, 5) >= -1.5  # the blurred tips of triangles and stars
    assert np.abs(np.median(excess, axis=0)).max() <= 0.5


def test_no_object_hides_too_much_of_an_earlier_one(monkeypatch):
    """Oracle: the stencils that were painted with a shadow, which clutter never has."""
    painted, paint = [], shapes_scene.paint

    def record(canvas, stencil, rng, *shadow):
        if shadow:
            painted.append(np.zeros(canvas.shape[:2], bool))
            painted[-1][stencil.window] = stencil.alpha > 0.5
        paint(canvas, stencil, rng, *shadow)

    monkeypatch.setattr(shapes_scene, "paint", record)
    fractions = []
    for number in range(1, 41):
        painted.clear()
        assert len(draw_picture(SMALL, "train", number).boxes) == len(painted)
        for k, mask in enumerate(painted):
            hidden = np.any([np.zeros_like(mask), *painted[k + 1 :]], axis=0)
            fractions.append((mask & ~hidden).sum() / mask.sum())
    assert 0.65 <= min(fractions) < 0.8  # there is occlusion, within bounds


def test_boxes_lie_inside_the_picture(default_val_pictures):
    for picture in default_val_pictures:
        height, width = picture.image.shape[:2]
        assert (picture.boxes >= 0).all()
        assert (picture.boxes <= (width, height, width, height)).all()
        assert (picture.boxes[:, 2:] - picture.boxes[:, :2] >= 5).all()
        assert (width, height) == (160, 128)


def test_frequencies_are_geometric():
    ratios = class_frequencies(1.0)[:-1] / class_frequencies(1.0)[1:]
    np.testing.assert_allclose(ratios, 20 ** (1 / 4))
    np.testing.assert_allclose(class_frequencies(0.0), 1 / 5)
    assert class_frequencies(2.0)[0] / class_frequencies(2.0)[-1] == pytest.approx(400)


def test_drawn_objects_follow_the_frequencies(default_val_pictures):
    labels = np.concatenate([picture.labels for picture in default_val_pictures])
    counts = np.bincount(labels, minlength=len(CLASSES))
    expected = class_frequencies(ShapesSpec().imbalance) * counts.sum()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 13.3  # 99 % of the distribution with 4 degrees of freedom
    assert counts.min() >= 8  # enough of the rarest class to score it


def test_some_pictures_hold_nothing_and_some_many(default_val_pictures):
    counts = np.array([len(picture.boxes) for picture in default_val_pictures])
    assert 2 <= np.count_nonzero(counts == 0) <= 16
    assert counts.max() == 8


def test_present_set_is_not_made_again(tmp_path, monkeypatch):
    ensure_shapes(tmp_path / "set", SMALL)
    monkeypatch.setattr(shapes, "_write_set", lambda root, spec: pytest.fail("written again"))
    ensure_shapes(tmp_path / "set", replace(SMALL))


def test_set_with_other_settings_is_refused_untouched(tmp_path):
    root = tmp_path / "set"
    ensure_shapes(root, SMALL)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"other settings.*data\.root"):
        ensure_shapes(root, replace(SMALL, seed=4))
    assert contents(tmp_path) == before
    (root / "shapes.json").write_text("{ torn")
    with pytest.raises(InputError, match="other settings"):
        ensure_shapes(root, SMALL)


def test_folder_with_something_else_is_refused_untouched(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="photos contains something other"):
        ensure_shapes(tmp_path / "photos", SMALL)
    with pytest.raises(InputError, match="is a file"):
        ensure_shapes(tmp_path / "photos" / "holiday.jpg", SMALL)
    assert contents(tmp_path) == before


def test_empty_folder_is_filled(tmp_path):
    ensure_shapes(tmp_path, SMALL)
    assert json.loads((tmp_path / "shapes.json").read_text())["spec"]["seed"] == 3


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_failure_midway_leaves_nothing(tmp_path, monkeypatch, failure, raised):
    written = []

    def write_until_full(path: Path, data: bytes) -> None:
        if len(written) == 7:  # in the second split
            raise failure
        written.append(path.open("wb").write(data))

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with pytest.raises(raised, match="set.*No space left" if raised is InputError else None):
        ensure_shapes(tmp_path / "set", SMALL)
    assert len(written) == 7
    assert contents(tmp_path) == {}


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/set.*cannot be written"):
        ensure_shapes(tmp_path / "file" / "set", SMALL)


def test_set_made_meanwhile_by_another_process_is_used(tmp_path, monkeypatch):
    rename = Path.rename

    def too_late(made: Path, root: Path) -> None:
        (made.parent / "twin").mkdir()
        shapes._write_set(made.parent / "twin", SMALL)
        rename(made.parent / "twin", root)
        rename(made, root)

    monkeypatch.setattr(Path, "rename", too_late)
    ensure_shapes(tmp_path / "set", SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    "wrong", [{"train_images": 0}, {"size_px": 10}, {"seed": -1}, {"imbalance": float("nan")}]
)
def test_senseless_spec_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ensure_shapes(tmp_path / "set", replace(SMALL, **wrong))
    assert contents(tmp_path) == {}
