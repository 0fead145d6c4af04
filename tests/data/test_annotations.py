"""What all sources share: paths stay inside, boxes without area are dropped, splits are joined."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.annotations import AnnotatedImage, Annotation, join_sets, pack_set
from data.lookup import inside
from data.sample import unlisted_id
from errors import InputError
from tests.builders import write_image


def make_set(folder, boxes, first_id=1, classes=("cat", "dog"), size=(48, 64), **annotation):
    """One image per list of boxes; labels alternate."""
    images = []
    for i, mine in enumerate(boxes):
        path = folder / f"{i}.png"
        write_image(path)
        objects = [Annotation(f"box {k}", box, k % 2, **annotation) for k, box in enumerate(mine)]
        images.append(AnnotatedImage(first_id + i, path, size, objects))
    return pack_set(images, classes, tuple(range(1, len(classes) + 1)), "the split")


@pytest.mark.parametrize("name", ["a.jpg", "deep/a.jpg", "a..b.jpg", ".hidden.jpg", "ä ö.jpg"])
def test_names_below_the_folder_are_joined_to_it(tmp_path, name):
    assert inside(tmp_path, name, "image 1") == tmp_path / name


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/../../b", "/a", "\\a", "..\\a", "C:a", "//host/share/a"]
)
def test_names_leading_out_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"image 1 names the image .* outside"):
        inside(tmp_path, name, "image 1")


def test_area_is_taken_from_the_annotation_else_from_the_box(tmp_path):
    assert make_set(tmp_path, [[(1, 2, 4, 6)]]).areas.tolist() == [12]
    assert make_set(tmp_path, [[(1, 2, 4, 6)]], area=5.0).areas.tolist() == [5]


def test_warning_counts_all_boxes_and_names_the_first_images(tmp_path, caplog):
    flat = (3.0, 3.0, 3.0, 9.0)
    with caplog.at_level(logging.WARNING):
        records = make_set(tmp_path, [[flat, (1, 2, 4, 6), flat]] + [[flat]] * 6)
    assert records.offsets.tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert records.boxes.tolist() == [[1, 2, 4, 6]]
    assert records.labels.tolist() == [1]
    (warning,) = caplog.messages
    assert "the split: dropped 8 boxes" in warning
    assert "(0.png, 1.png, 2.png, 3.png, 4.png, ...)" in warning


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((-5, -5, 0, 10), False),  # touches the left edge
        ((-5, -5, 0.5, 10), True),
        ((64, 0, 70, 10), False),
        ((63.5, 0, 70, 10), True),
        ((0, 48, 10, 50), False),
        ((0, 47.5, 10, 50), True),
        ((-9, -9, 99, 99), True),
    ],
)
def test_box_stays_if_a_part_lies_inside_the_image(tmp_path, box, kept):
    assert make_set(tmp_path, [[box]]).boxes.tolist() == ([list(box)] if kept else [])


@pytest.mark.parametrize("number", [9, 10])
def test_boxes_in_parts_of_the_image_are_refused(tmp_path, number):
    parts = [[(0.1 * k, 0.2, 0.1 * k + 0.1, 0.4) for k in range(number)]]
    if number < 10:  # these may be dots
        assert len(make_set(tmp_path, parts).boxes) == number
        return
    for x, y in ((0.0, 0.0), (0.05, 0.1)):  # a centre may be written in place of the corner
        moved = [[(x0 + x, y0 + y, x1 + x, y1 + y) for x0, y0, x1, y1 in parts[0]]]
        with pytest.raises(
            InputError,
            match="the split: nearly all boxes lie within one pixel, as if they were fractions of width",
        ):
            make_set(tmp_path, moved)


def test_join_puts_the_splits_one_after_the_other(tmp_path):
    first = make_set(tmp_path / "a", [[(1, 2, 3, 4), (5, 6, 7, 8)], []], first_id=1)
    second = make_set(tmp_path / "b", [[], [(9, 8, 10, 12)]], first_id=7, ignore=True)
    third = make_set(tmp_path / "c", [[(0, 0, 1, 1)]], first_id=3)
    joined = join_sets([first, second, third], "data.splits.train")
    assert joined.image_ids.tolist() == [1, 2, 7, 8, 3]
    assert joined.files.tolist() == [*first.files, *second.files, *third.files]
    assert joined.sizes.shape == (5, 2)
    assert joined.offsets.tolist() == [0, 2, 2, 2, 3, 4]
    assert joined.boxes.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 8, 10, 12], [0, 0, 1, 1]]
    assert joined.labels.tolist() == [0, 1, 0, 0]
    assert joined.ignore.tolist() == [False, False, True, False]
    assert joined.areas.tolist() == [4, 4, 4, 1]
    assert (joined.classes, joined.category_ids) == (("cat", "dog"), (1, 2))


def test_join_renumbers_images_whose_ids_meet(tmp_path):
    first = make_set(tmp_path / "a", [[], []], first_id=5)
    second = make_set(tmp_path / "b", [[], []], first_id=6)
    joined = join_sets([first, second], "data.splits.train")
    assert sorted(set(joined.image_ids.tolist())) == sorted(joined.image_ids.tolist())
    assert len(joined) == 4


def test_join_takes_the_ids_of_the_files_that_list_a_class(tmp_path):
    """A class that no file lists has no id; if different classes have the same id, all ids are new."""
    one, other = (
        replace(make_set(tmp_path, [[]]), category_ids=ids)
        for ids in ((3, unlisted_id(1)), (unlisted_id(0), 9))
    )
    assert join_sets([one, other], "train").category_ids == (3, 9)
    assert join_sets([one, one], "train").category_ids == (3, unlisted_id(1))
    clash = replace(other, category_ids=(unlisted_id(0), 3))
    assert join_sets([one, clash], "train").category_ids == (1, 2)


def test_join_of_one_is_that_one(tmp_path):
    only = make_set(tmp_path, [[(1, 2, 3, 4)]], first_id=9)
    joined = join_sets([only], "data.splits.train")
    assert joined.image_ids.tolist() == [9]
    np.testing.assert_array_equal(joined.boxes, only.boxes)


@pytest.mark.parametrize("other", [("dog", "cat"), ("cat",), ("cat", "dog", "cow")])
def test_splits_of_other_classes_are_not_joined(tmp_path, other):
    """The same classes in another order would be other labels."""
    first, second = make_set(tmp_path / "a", [[]]), make_set(tmp_path / "b", [[]], classes=other)
    with pytest.raises(InputError, match=rf"data\.splits\.train.*cat, dog and {', '.join(other)}"):
        join_sets([first, second], "data.splits.train")


def test_join_leaves_its_parts_alone(tmp_path):
    first = make_set(tmp_path / "a", [[(1, 2, 3, 4)]])
    second = make_set(tmp_path / "b", [[(5, 6, 7, 8)]])
    join_sets([first, second], "data.splits.train")
    assert (first.image_ids.tolist(), second.image_ids.tolist()) == ([1], [1])
    assert second.offsets.tolist() == [0, 1]


def test_a_set_of_which_most_boxes_are_outside_is_refused(tmp_path: Path) -> None:
    """As with images made smaller after annotation: their objects would be learnt as background."""
    write_image(tmp_path / "a.png", 48, 64)
    within, beyond = (Annotation("", (x, 5.0, x + 20, 30.0), label=0) for x in (10.0, 70.0))

    def packed(*objects: Annotation) -> int:
        image = AnnotatedImage(1, tmp_path / "a.png", (48, 64), [*objects])
        return len(pack_set([image], ("cat",), (1,), "the split").boxes)

    assert packed(*[within] * 10, *[beyond] * 10) == 10
    with pytest.raises(InputError, match=r"the split: 11 of 21 boxes lie outside .*made smaller after"):
        packed(*[within] * 10, *[beyond] * 11)
