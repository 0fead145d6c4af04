"""Which inputs the words of a command line name."""

from pathlib import Path

import pytest
from PIL import Image

from data.images import read_header, read_image, read_size
from data.inputs import find_sources
from errors import InputError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = ("in/b.JPG", "in/a.png", "in/deep/c.tiff", "in/clip.MP4", "in/notes.txt", "in/.hidden/d.png")
    for name in (*names, "in/._a.png", "odd.data", "empty/x.txt", "square[1].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*words: str) -> list[tuple[str, str]]:
    return [(source.kind, str(source.path)) for source in find_sources(words)]


FOLDER = [("image", "in/a.png"), ("image", "in/b.JPG"), ("video", "in/clip.MP4"), ("image", "in/deep/c.tiff")]


def test_a_folder_is_searched_to_the_bottom(place: Path) -> None:
    assert found("in") == FOLDER
    (place / "links").mkdir()
    (place / "links" / "to").symlink_to(place / "in")
    assert len(found("links")) == len(FOLDER)
    assert [str(source.place) for source in find_sources(["in"])] == [
        "a.png",
        "b.JPG",
        "clip.MP4",
        "deep/c.tiff",
    ]


def test_each_file_is_taken_once_however_it_is_spelt(place: Path) -> None:
    (place / "again").symlink_to("in")
    (place / "in" / "linked.png").symlink_to("a.png")  # another name, which may be intended
    words = ("in/a.png", "./in/a.png", str(place / "in/a.png"), "empty/../in/a.png", "again/a.png")
    assert found(*words) == [("image", "in/a.png")]
    assert len(found("in", "again", "*", "in/*")) == len(FOLDER) + 3
    assert found("in/a.png", "in/linked.png") == [("image", "in/a.png"), ("image", "in/linked.png")]


def test_typescript_is_no_video(place: Path) -> None:
    for name, content in (
        ("app.ts", b"import x"),
        ("clip.ts", b"G" + bytes(187)),
        ("b.mts", bytes(4) + b"G"),
    ):
        (place / "in" / name).write_bytes(content)
    assert {("video", "in/clip.ts"), ("video", "in/b.mts")} <= {*found("in")}
    assert "in/app.ts" not in {path for _, path in found("in")}


def test_pictures_that_have_to_be_converted_are_not_passed_over(place: Path) -> None:
    (place / "in" / "IMG_1.HEIC").touch()
    assert ("image", "in/IMG_1.HEIC") in found("in")


def test_a_raw_picture_is_not_its_thumbnail(tmp_path: Path) -> None:
    """Pillow would open it as the small TIFF that it begins with."""
    Image.new("RGB", (160, 120)).save(tmp_path / "a.tif")
    raw = (tmp_path / "a.tif").rename(tmp_path / "a.NEF")
    for read in (read_header, read_size, lambda path: read_image(path, (120, 160))):
        with pytest.raises(InputError, match=r"a\.NEF cannot be read: NEF is not supported; convert it"):
            read(raw)


def test_a_pattern_names_files_and_folders(place: Path) -> None:
    assert found("in/*.png") == [("image", "in/a.png")]
    assert found("in/**/*.t*") == [("image", "in/deep/c.tiff")]  # notes.txt may be labels
    with pytest.raises(InputError, match=r"^in/\*\.txt matches .* \.txt files; name each list explicitly"):
        find_sources(["in/*.txt"])
    assert found("i?") == FOLDER


def test_results_of_a_pattern_that_leads_upwards_stay_in_their_folder(place: Path) -> None:
    sources = find_sources(["in/*/../*.png"])
    assert [(str(source.path), str(source.place)) for source in sources] == [
        ("in/deep/../a.png", "deep/a.png")
    ]


def test_a_file_is_taken_whatever_its_name(place: Path) -> None:
    assert found("odd.data") == [("image", "odd.data")]
    assert found("square[1].png") == [("image", "square[1].png")]


def test_order_is_kept_and_each_stands_once(place: Path) -> None:
    assert found("odd.data", "-", "in/b.JPG", "in", "-") == [
        ("image", "odd.data"), ("stdin", "stdin"), ("image", "in/b.JPG"),
        *[source for source in FOLDER if source[1] != "in/b.JPG"],
    ]  # fmt: skip


def test_a_pattern_does_not_match_what_predict_has_drawn(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("pictures/a.jpg", ".predictions", "deep/clip.png"):
        (place / "in/predictions" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "in/predictions" / name).touch()
    assert found("in/**/*.png") == [("image", "in/a.png")]
    assert "are left out: in/predictions" in caplog.text
    assert found("in/*") == [source for source in FOLDER if source[1] != "in/deep/c.tiff"] + [
        ("image", "in/deep/c.tiff"),
    ]
    with pytest.raises(InputError, match=r"^in/pred\*/\*\*/\*\.jpg matches only results of predict"):
        find_sources(["in/pred*/**/*.jpg"])
    assert found("in/predictions/pictures/*.jpg") == [("image", "in/predictions/pictures/a.jpg")]
    assert [str(source.place) for source in find_sources(["in/d*/*.tiff"])] == ["deep/c.tiff"]


def test_what_predict_has_drawn_is_no_input(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As when `cd photos; predict.py RUN .` is run twice. A results folder that is named itself is read."""
    for name in ("pictures/a.jpg", ".predictions", "deep/clip.png"):
        (place / "in/predictions" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "in/predictions" / name).touch()
    assert found("in") == FOLDER
    assert "in contains results of predict.py, which are left out: in/predictions" in caplog.text
    assert ("image", "in/predictions/pictures/a.jpg") in found("in/predictions")


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("", "an input is empty"),
        ("gone.jpg", "gone.jpg does not exist"),
        ("gone/*.jpg", r"gone/\*.jpg matches nothing"),
        ("empty", "empty contains no images or videos"),
    ],
)
def test_a_word_that_names_nothing_is_refused(place: Path, word: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        find_sources(["in", word])
