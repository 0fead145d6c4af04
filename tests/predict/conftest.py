"""A trained detector, its evaluation, and a folder of images to detect in."""

import shutil
from pathlib import Path

import pytest

import train
from detector.evaluation.checkpoint import CheckpointScores, evaluate_checkpoint
from tests.builders import TINY_MODEL, small_coco
from tests.runs import call


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    small_coco(folder / "set")
    (folder / "tiny.yaml").write_text(f"data: {{format: coco, root: {folder}/set}}\ntrain: {{epochs: 1}}\n")
    assert call(train.main, "tiny.yaml", "run.dir=run", *TINY_MODEL, cwd=folder).code == 0
    return folder


@pytest.fixture(scope="package")
def evaluated(trained: Path) -> CheckpointScores:
    return evaluate_checkpoint(trained / "run", [], "val")


@pytest.fixture
def place(tmp_path: Path, trained: Path) -> Path:
    """A folder with images/ of 0.png to 5.png, deep/0.png and a text file."""
    shutil.copytree(trained / "set" / "images", tmp_path / "images")
    (tmp_path / "images" / "deep").mkdir()
    shutil.copy(tmp_path / "images" / "1.png", tmp_path / "images" / "deep" / "0.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path
