"""The documentation is right: the commands, links, files and configuration keys that it names exist."""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.config import Config
from detector.config.file import apply_overrides, load_config
from detector.config.reference import reference
from docs.draw_ap_loss import drawing
from tests.builders import small_coco
from tests.runs import tiny_config

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """README.md, CONTRIBUTING.md and docs/*.md, each file's text by its path."""
    paths = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def code(text: str) -> list[str]:
    """Fenced blocks and `spans` of a Markdown text."""
    blocks = [match[0] for match in FENCE.finditer(text)]
    return blocks + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def overrides(snippet: str) -> list[str]:
    """The dotted KEY=VALUE words of a command line."""
    return re.findall(r"(?<!\S)([a-z]\w*(?:\.\w+)+)=(?=\S)", snippet)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Every command that starts one of our programs: the page, and the words from the program on."""
    for name, text in pages().items():
        for part in code(text):
            for line in part.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:python|torchrun) (?:.* )?(\w+\.py .*|-m [\w.]+.*)", line)
                if found:
                    yield name, shlex.split(found[1], comments=True)


def given(words: list[str]) -> list[str]:
    """The KEY=VALUE words, without the placeholders of a synopsis."""
    return [word for word in words if re.match(r"[a-z]\w*(\.\w+)+=", word) and not word.endswith("...")]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {
        name if kept[:i].count(name) == 0 else f"{name}-{kept[:i].count(name)}" for i, name in enumerate(kept)
    }


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """The shipped configurations, and those that a page tells the reader to write."""
    folder = tmp_path / "configs"
    shutil.copytree(ROOT / "configs", folder)
    for text in pages().values():
        for language, block in FENCE.findall(text):
            named = re.search(r"# configs/(my_\w+\.yaml)", block)
            if language == "yaml" and named:
                (folder / named[1]).write_text(block, encoding="utf-8")
    return folder


def test_configuration_reference_is_what_the_schema_generates() -> None:
    """Regenerate with: python -m detector.config.reference."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_drawing_is_what_the_loss_computes_today() -> None:
    """Regenerate with: python -m docs.draw_ap_loss. Text is compared exactly, coordinates up to rounding."""
    number = re.compile(r"(\d+\.?\d*)")
    drawings = ((ROOT / "docs" / "ap_loss.svg").read_text(encoding="utf-8"), drawing())
    read, expected = (re.findall(r">([^<\n]+)<", text) for text in drawings)
    assert read == expected
    stored, made = (number.split(text) for text in drawings)
    assert stored[::2] == made[::2]
    assert list(map(float, stored[1::2])) == pytest.approx(list(map(float, made[1::2])), abs=0.11)


def test_every_link_leads_to_a_file_and_a_heading_that_exist() -> None:
    broken = []
    for name, text in pages().items():
        for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / name).parent / path if path else ROOT / name
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_every_page_is_in_the_index_and_the_index_in_the_readme() -> None:
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)", pages()["docs/README.md"]))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} - linked == set()
    assert "](docs/README.md)" in pages()["README.md"]


def test_configurations_that_the_documentation_names_exist_and_are_accepted(configs: Path) -> None:
    """A my_*.yaml is one that the reader is told to write."""
    named = {name for text in pages().values() for name in re.findall(r"\bconfigs/([\w-]+\.yaml)", text)}
    assert named
    assert {name for name in named if not (configs / name).is_file()} == set()
    for name in named:
        load_config(configs / name)


def test_every_shipped_configuration_stands_in_the_readme() -> None:
    text = pages()["README.md"]
    assert [path.name for path in (ROOT / "configs").glob("*.yaml") if path.name not in text] == []


def test_configuration_keys_in_the_documentation_are_valid() -> None:
    """apply_overrides refuses a key that the schema does not have."""
    found = {key: name for name, text in pages().items() for part in code(text) for key in overrides(part)}
    assert found
    for key in found:
        apply_overrides({}, [f"{key}=null"])


def test_keys_without_a_value_are_valid_too() -> None:
    """Words like `loss.delta` in backticks are a key or section of the schema, a module or a file."""
    schema = re.findall(r"\| `([\w.]+)` \|", reference())
    known = {key[:end] for key in schema for end in (len(key), *(m.start() for m in re.finditer(r"\.", key)))}
    sections = "|".join(Config.model_fields)
    unknown = []
    for name, text in pages().items():
        for span in re.findall(rf"`((?:{sections})(?:\.\w+)+)`", FENCE.sub("", text)):
            is_file = span.endswith((".py", ".yaml", ".json"))
            if not is_file and span not in known and not (ROOT / f"{span.replace('.', '/')}.py").exists():
                unknown.append(f"{name}: {span}")
    assert unknown == []


def test_configurations_and_overrides_of_commands_are_accepted(configs: Path) -> None:
    """Each `train.py CONFIG KEY=VALUE ...` is read as train.py reads it, values included."""
    read = 0
    for _, (program, *words) in commands():
        if program != "train.py" or words[0] in ("--resume", "[CONFIG]"):
            continue
        config = words[0] if words[0].endswith(".yaml") else "configs/demo.yaml"
        load_config(configs.parent / config, given(words))
        read += 1
    assert read >= 10


def test_overrides_by_themselves_are_accepted() -> None:
    """Such as `loss.name=alrp loss.box=giou`: the values are valid, also together."""
    read = 0
    for text in pages().values():
        for span in re.findall(r"`([a-z]\w*\.[^`\n]+)`", FENCE.sub("", text)):
            words = re.findall(r"[a-z][\w.]*=(?:\[[^\]]*\]|\S+)", span)
            if words and " ".join(words) == span:
                load_config(ROOT / "configs" / "bccd.yaml", ["loss.class_by_class=false", *words])
                read += 1
    assert read >= 10


@pytest.mark.parametrize("program", ["train.py", "evaluate.py", "predict.py"])
def test_options_in_commands_exist(program: str) -> None:
    """--help lists them."""
    used = {word for _, (name, *words) in commands() if name == program for word in words}
    said = subprocess.run(
        [sys.executable, program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    options = {match for word in used for match in re.findall(r"^\[?(--[a-z-]+)", word)}
    assert options
    assert {option for option in options if not re.search(rf"{option}(?![\w-])", said)} == set()


def test_modules_in_commands_exist() -> None:
    named = {words[1] for _, words in commands() if words[0] == "-m"} - {"pytest", "pip", "venv"}
    assert named
    assert {name for name in named if importlib.util.find_spec(name) is None} == set()


@pytest.mark.parametrize("target", ["setup", "demo", "test"])
def test_readme_names_the_commands_of_the_makefile(target: str) -> None:
    assert f"make {target}" in pages()["README.md"]


def test_make_commands_in_the_documentation_exist() -> None:
    named = {
        t for text in pages().values() for part in code(text) for t in re.findall(r"\bmake ([a-z]+)", part)
    }
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert named
    assert named <= targets


def test_the_training_loop_of_ones_own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example, with_data = (
        block for _, block in FENCE.findall(pages()["docs/extending.md"]) if "GroundTruth(" in block
    )
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(example, names)
    assert set(names["losses"].parts) == {"classification", "box"} and names["losses"].positives > 0
    assert all(p.grad is not None for p in names["model"].parameters() if p.requires_grad)
    assert 0 < len(names["found"].boxes) <= 100
    names["config"] = tiny_config(small_coco(tmp_path / "set"), tmp_path / "run", "train.epochs=1")
    exec(with_data, names)
    assert names["losses"].total.isfinite() and len(names["batch"].images) == 2
    assert names["network"] is names["parts"].learner.model  # as there is one process
