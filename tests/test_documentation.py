"""What the documentation says is so: commands, files and configuration keys that it names exist."""

import re
from pathlib import Path

import pytest

from detector.config import apply_overrides, load_config
from detector.config_reference import reference

ROOT = Path(__file__).parents[1]


def pages() -> dict[str, str]:
    """README.md and docs/*.md, each file's text by its name."""
    return {
        path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    }


def code(text: str) -> list[str]:
    """Fenced blocks and `spans` of a Markdown text."""
    fence = r"^```.*?^```"
    blocks = re.findall(fence, text, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(fence, "", text, flags=re.MULTILINE | re.DOTALL))
    return blocks + spans


def overrides(snippet: str) -> list[str]:
    """The dotted KEY=VALUE words of a command line."""
    return re.findall(r"(?<!\S)([a-z]\w*(?:\.\w+)+)=(?=\S)", snippet)


def test_configuration_reference_is_what_the_schema_generates() -> None:
    """Remade by: python -m detector.config_reference."""
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def test_configurations_that_the_readme_names_exist() -> None:
    """A my_*.yaml is the one that the reader is told to write."""
    named = set(re.findall(r"configs/(?!my_)[\w.-]+\.yaml", pages()["README.md"]))
    assert named
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_shipped_configuration_stands_in_the_readme() -> None:
    text = pages()["README.md"]
    assert [path.name for path in (ROOT / "configs").glob("*.yaml") if path.name not in text] == []


def test_configuration_keys_in_the_documentation_are_valid() -> None:
    """apply_overrides refuses a key that the schema does not have."""
    found = {key: name for name, text in pages().items() for part in code(text) for key in overrides(part)}
    assert found
    for key in found:
        apply_overrides({}, [f"{key}=null"])


def test_overrides_of_the_readmes_training_commands_are_accepted() -> None:
    """Each `python train.py CONFIG KEY=VALUE ...` is read as train.py reads it, values included."""
    commands = re.findall(
        r"^\S*python train\.py (configs/\S+\.yaml)((?: \S+=\S+)*)", pages()["README.md"], re.M
    )
    assert commands
    for config, words in commands:
        load_config(ROOT / config, words.split())


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
