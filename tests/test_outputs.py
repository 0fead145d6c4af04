"""Files that are written where the user says replace nothing that is needed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import evaluate as door
from data.check.__main__ import main as check_door
from detector.output import check_output, write_text
from errors import InputError
from tests.builders import small_coco
from tests.runs import assert_one_line, assert_refused, call

Change = Any


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """gt.json, and res.json with perfect results for it."""
    small_coco(tmp_path / "set", 3)
    gt = json.loads((tmp_path / "set/annotations/val.json").read_text())
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    found = [
        {**{k: one[k] for k in ("image_id", "category_id", "bbox")}, "score": 1} for one in gt["annotations"]
    ]
    (tmp_path / "res.json").write_text(json.dumps(found))
    (tmp_path / "tiny.yaml").write_text("data: {format: coco, root: set}\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


SCORE = ("--predictions", "res.json", "--annotations", "gt.json", "--output")


@pytest.mark.parametrize("output", ["gt.json", "res.json", "folder", "tiny.yaml", "nowhere/out.json", "pipe"])
def test_an_output_of_evaluation_replaces_no_other_file(place: Path, output: str) -> None:
    os.mkfifo(place / "pipe")
    assert_refused(door.main, (*SCORE, output), place, "--output", output.partition("/")[0])


def test_an_area_that_is_null_is_that_of_the_box(place: Path) -> None:
    content = json.loads((place / "gt.json").read_text())
    for one in content["annotations"]:
        one["area"] = None
    (place / "gt.json").write_text(json.dumps(content))
    assert call(door.main, *SCORE, "out.json", cwd=place).code == 0
    assert json.loads((place / "out.json").read_text())["AP"] == pytest.approx(1)


def test_an_earlier_output_is_replaced(place: Path) -> None:
    """Metrics by a comparison, and the other way round; also an empty file, as mktemp makes it."""
    (place / "out.json").touch()
    compare = ("--predictions", "res.json", "res.json", *SCORE[2:])
    for words in (SCORE, SCORE, compare, SCORE):
        assert call(door.main, *words, "out.json", cwd=place).code == 0
    assert json.loads((place / "out.json").read_text())["AP"] == pytest.approx(1)


def test_the_file_is_there_when_the_reader_of_the_table_has_gone(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(door, "print", gone, raising=False)
    monkeypatch.setattr("doors.close_output", lambda: None)
    assert call(door.main, *SCORE, "out.json", cwd=place).code == 0
    assert "AP" in json.loads((place / "out.json").read_text())


def test_a_report_that_fails_costs_no_metrics(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise InputError("--report: no space left")

    monkeypatch.setattr("detector.report.page.report_page", fail)
    outcome = call(door.main, *SCORE, "out.json", "--report", "page", cwd=place)
    assert outcome.code == 2
    assert outcome.err == "error: --report: no space left\n"
    assert "AP50" in outcome.out
    assert json.loads((place / "out.json").read_text())["AP"] == pytest.approx(1)


def test_all_outputs_that_fail_are_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr("detector.evaluation.command.write_text", fail)
    monkeypatch.setattr("detector.evaluation.command.write_report", fail)
    outcome = call(door.main, *SCORE, "out.json", "--report", "page", cwd=place)
    assert (outcome.code, outcome.err) == (2, "error: cannot write out.json\n")
    assert [record.getMessage() for record in caplog.records] == ["cannot write page"]


def test_results_of_a_part_of_the_images_are_told(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids in quotes are recognised as well."""
    gt = json.loads((place / "gt.json").read_text())
    more = [{**image, "id": 900 + k} for k, image in enumerate(gt["images"] * 2)]
    one = {**gt["annotations"][0], "category_id": str(gt["annotations"][0]["category_id"])}
    boxes = [{**one, "id": 900 + k, "image_id": str(image["id"])} for k, image in enumerate(more)]
    gt = {**gt, "images": gt["images"] + more, "annotations": gt["annotations"] + boxes}
    (place / "gt.json").write_text(json.dumps(gt))
    content = json.loads((place / "res.json").read_text())
    first = content[0]["image_id"]
    some = [
        {**one, "image_id": str(first), "category_id": str(one["category_id"])}
        for one in content
        if one["image_id"] == first
    ]
    (place / "res.json").write_text(json.dumps(some))
    assert call(door.main, *SCORE, "out.json", cwd=place).code == 0
    images = len({str(one["image_id"]) for one in gt["annotations"]})
    assert "left out" not in caplog.text
    assert f"no detection in {images - 1} of the {images} images that have gt boxes" in caplog.text


def test_a_report_that_cannot_be_written_is_refused_before_the_work(place: Path) -> None:
    (place / "file").write_text("")
    assert_refused(
        door.main, (*SCORE, "out.json", "--report", "file/page"), place, "--report: file/page", "file"
    )
    assert not (place / "out.json").exists()


def test_a_table_is_not_what_output_writes(place: Path) -> None:
    assert_refused(door.main, (*SCORE, "out.csv"), place, "--output: out.csv would contain JSON", "--report")


def test_the_folder_of_a_report_is_for_it_alone(place: Path) -> None:
    for output in ("page/out.json", "page/deep/out.json"):
        assert_refused(
            door.main, (*SCORE, output, "--report", "page"), place, f"--output: {output}", "--report"
        )
    words = ("run", "--recalibrate", "page/new.pt", "--report", "page")
    assert_refused(door.main, words, place, "--recalibrate: page/new.pt is in the folder of --report")
    for other in ("page", "folder/../page"):
        assert_refused(
            door.main, (*SCORE, other, "--report", "page"), place, "--output and --report are both"
        )


def test_a_folder_without_permission_is_known_beforehand(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != place / "folder")
    assert_refused(door.main, (*SCORE, "folder/out.json"), place, "--output: no permission", "folder")
    check_output("--output", place / "out.json")


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize("output", ["set/annotations/train.json", "tiny.yaml", "folder"])
def test_an_output_of_the_check_replaces_no_other_file(place: Path, option: str, output: str) -> None:
    assert_refused(check_door, ("tiny.yaml", "--fast", option, output), place, option, output)


def test_two_outputs_are_two_files(place: Path) -> None:
    words = ("tiny.yaml", "--fast", "--json", "both", "--html", "folder/../both")
    assert_refused(check_door, words, place, "--json and --html", "both")


def test_what_is_read_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"weights")
    (tmp_path / "link.onnx").symlink_to("last.pt")
    with pytest.raises(InputError, match=r"--output: .*link\.onnx is also an input of this command"):
        check_output("--output", tmp_path / "link.onnx", None, [tmp_path / "last.pt"])
    check_output("--output", tmp_path / "link.onnx", None, [tmp_path / "other.pt"])


def test_a_file_name_in_another_encoding_goes_through(tmp_path: Path) -> None:
    write_text(tmp_path / "names.csv", "caf\udce9.jpg\n")
    assert (tmp_path / "names.csv").read_bytes() == b"caf\xe9.jpg\n"


RESULTS: dict[str, tuple[Change, str]] = {
    "no box": (lambda found: found[1].pop("bbox"), "detection 1 has no 'bbox'"),
    "no score": (lambda found: found[1].update(score=None), "detection 1 is malformed"),
    "huge": (lambda found: found[1].update(score=10**400), "detection 1 is malformed"),
}
ANNOTATIONS: dict[str, tuple[Change, str]] = {
    "image twice": (lambda gt: gt["images"].append(dict(gt["images"][0])), "the image id"),
    "class twice": (lambda gt: gt["categories"].append({**gt["categories"][0], "id": 99}), "category name"),
    "no classes": (lambda gt: gt.update(categories=[]), "'categories' is empty"),
    "no box": (lambda gt: gt["annotations"][0].pop("bbox"), "annotation "),
    "huge": (lambda gt: gt["annotations"][0].update(area=10**400), "is malformed"),
}


@pytest.mark.parametrize("case", [*RESULTS, *(f"gt: {name}" for name in ANNOTATIONS)])
def test_an_entry_at_fault_is_named(place: Path, case: str) -> None:
    is_gt = case.startswith("gt: ")
    change, named = ANNOTATIONS[case[4:]] if is_gt else RESULTS[case]
    path = place / ("gt.json" if is_gt else "res.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    assert_refused(door.main, SCORE[:-1], place, path.name, named)


def test_a_long_override_is_no_file(place: Path) -> None:
    transforms = ", ".join(["HorizontalFlip"] * 30)
    outcome = call(door.main, "nowhere", f"data.transforms.train=[{transforms}]", cwd=place)
    assert_one_line(outcome, "nowhere does not exist")
