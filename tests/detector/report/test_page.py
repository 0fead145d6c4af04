"""The report as a user gets it: one self-contained page that parses; or one line and nothing written."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import evaluate
from tests.builders import coco_dict, small_coco, write_coco
from tests.runs import assert_refused, call, listing, no_file_larger_than

TABLES = ("confusion.csv", "images.csv", "precision_recall.csv", "thresholds.csv")
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Raises if tags do not nest; collects text, and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v or "" for name, v in attrs if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write_case(folder: Path, found: int = 4, cat: str = "cat") -> list[str]:
    """Truth of five images with a cat and a dog each, and noisy results; returns the options for them."""
    small_coco(folder / "set")
    truth = folder / "set" / "annotations" / "val.json"
    content = json.loads(truth.read_text())
    content["categories"][0]["name"] = cat
    truth.write_text(json.dumps(content))
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    for a in content["annotations"] * found:
        category = a["category_id"] if rng.random() < 0.7 else 10 - a["category_id"]
        box = (np.array(a["bbox"]) + rng.normal(0, 3, 4)).tolist()
        results.append({"image_id": a["image_id"], "category_id": category, "bbox": box,
                        "score": float(rng.random())})  # fmt: skip
    (folder / "found.json").write_text(json.dumps(results))
    return ["--predictions", "found.json", "--annotations", str(truth.relative_to(folder))]


def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    """No script, nothing fetched, every figure well-formed, names escaped, the metrics shown."""
    words = write_case(tmp_path, cat="<b>cat & co")
    done = call(
        evaluate.main, *words, "--images", "set/images", "--report", "out", "--output", "m.json", cwd=tmp_path
    )
    assert (done.code, done.err) == (0, "")
    assert "report: out/index.html" in done.out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"index.html", *TABLES}
    text = (tmp_path / "out" / "index.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert page.sources and all(s.startswith("data:image/jpeg;base64,") for s in page.sources)
    assert "url(" not in text and "@import" not in text
    figures = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(figures) >= 6
    for figure in figures:
        ElementTree.fromstring(figure)
        assert "nan" not in figure and "inf" not in figure
    metrics = json.loads((tmp_path / "m.json").read_text())
    for value in (metrics["AP"], metrics["per_class"]["dog"]["AP75"], metrics["per_class"]["dog"]["best_f1"]):
        assert f"{value:.3f}" in page.texts
    for name, one in metrics["errors"].items():
        assert f"+{one['AP50']:.3f}" in page.texts, name
    assert "<b>cat & co" in page.texts


def test_without_images_the_page_says_so(tmp_path: Path) -> None:
    words = write_case(tmp_path)
    assert call(evaluate.main, *words, "--report", "out", cwd=tmp_path).code == 0
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert "img" not in page.tags
    assert any("--images DIR" in text for text in page.texts)


@pytest.mark.parametrize("empty", ["found", "gt", "both"])
def test_there_is_a_page_of_nothing_too(empty: str, tmp_path: Path) -> None:
    truth = coco_dict([[] if empty != "found" else [[4, 5, 20, 18]], []])
    write_coco(tmp_path / "set", truth, truth)
    found = [{"image_id": 10, "category_id": 3, "bbox": [1, 2, 30, 20], "score": 0.5}] * (empty == "gt")
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["--predictions", "found.json", "--annotations", "set/annotations/val.json"]
    done = call(evaluate.main, *words, "--images", "set/images", "--report", "out", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    text = re.sub(r'src="data:[^"]*"', "", (tmp_path / "out" / "index.html").read_text())
    Page(text)
    assert re.findall(r"\b(nan|inf|None, )\b", text) == []


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    words = [*write_case(tmp_path), "--report", "out"]
    for _ in range(2):
        assert call(evaluate.main, *words, cwd=tmp_path).code == 0
    for name in TABLES:  # older reports had none
        (tmp_path / "out" / name).unlink()
    assert call(evaluate.main, *words, cwd=tmp_path).code == 0
    for name in ("notes.txt", "images.csv"):
        (tmp_path / "out" / name).write_text("mine")
        assert_refused(evaluate.main, tuple(words), tmp_path, "--report", "out", "something other")
        (tmp_path / "out" / name).unlink()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<html>mine</html>")
    assert_refused(evaluate.main, (*words[:-1], "site"), tmp_path, "--report", "site")
    assert_refused(evaluate.main, (*words[:-1], "found.json"), tmp_path, "--report", "not a folder")


def test_hidden_files_are_no_obstacle_and_stay(tmp_path: Path) -> None:
    """Finder leaves one in every folder that it has shown, even in empty ones."""
    words = [*write_case(tmp_path), "--report", "out"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_text("Finder's")
    for _ in range(2):
        done = call(evaluate.main, *words, cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert {p.name for p in (tmp_path / "out").iterdir()} == {".DS_Store", "index.html", *TABLES}
    assert (tmp_path / "out" / ".DS_Store").read_text() == "Finder's"


def test_the_name_of_the_results_is_text_in_title_and_heading(tmp_path: Path) -> None:
    write_case(tmp_path)
    (tmp_path / "found.json").rename(tmp_path / "<i>R&amp.json")
    words = ("--predictions", "<i>R&amp.json", "--annotations", "set/annotations/val.json")
    assert call(evaluate.main, *words, "--report", "out", cwd=tmp_path).code == 0
    text = (tmp_path / "out" / "index.html").read_text()
    for tag in ("title", "h1"):
        told, *_ = re.findall(f"<{tag}>(.*?)</{tag}>", text)  # figures have titles too
        assert told == "Evaluation of &lt;i&gt;R&amp;amp.json"


def test_a_full_disk_leaves_no_folder_and_the_old_report(tmp_path: Path) -> None:
    words = write_case(tmp_path)
    before = listing(tmp_path)
    with no_file_larger_than(2000):
        done = call(evaluate.main, *words, "--report", "deep/out", cwd=tmp_path)
    assert done.code == 2 and done.err.startswith("error: --report: ") and len(done.err.splitlines()) == 1
    assert listing(tmp_path) == before
    assert call(evaluate.main, *words, "--report", "out", cwd=tmp_path).code == 0
    report = listing(tmp_path / "out")
    with no_file_larger_than(2000):
        assert call(evaluate.main, *words, "--threshold", "0.9", "--report", "out", cwd=tmp_path).code == 2
    assert listing(tmp_path / "out") == report


def test_images_that_are_not_there_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    words = write_case(tmp_path)
    report = ("--report", "out")
    assert_refused(evaluate.main, (*words, *report, "--images", "nowhere"), tmp_path, "--images", "nowhere")
    assert_refused(evaluate.main, (*words, "--images", "set/images"), tmp_path, "--images", "--report")
    two = (*words[:2], "found.json", *words[2:], *report)
    assert_refused(evaluate.main, two, tmp_path, "--report")
    (tmp_path / "set" / "images" / "2.png").unlink()
    assert_refused(evaluate.main, (*words, *report, "--images", "set/images"), tmp_path, "2.png")


def test_images_are_found_in_folders_that_their_names_leave_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*write_case(tmp_path), "--report", "out", "--images", "set/images")
    images = tmp_path / "set" / "images"
    first, *others = sorted(images.iterdir())
    for place, files in (("a", [first]), ("b", others)):
        (images / place).mkdir()
        for file in files:
            file.rename(images / place / file.name)
    done = call(evaluate.main, *words, cwd=tmp_path)
    assert done.code == 0 and "found in subfolders of set/images that their names leave out" in caplog.text
    assert Page((tmp_path / "out" / "index.html").read_text()).sources
    (images / "a" / first.name).rename(images / "b" / first.name)
    assert_refused(evaluate.main, words, tmp_path, "set/images/b", "give that folder as --images")
