"""The run folder: configuration, metrics, checkpoints and TensorBoard events of one training."""

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any

from errors import InputError

METRICS = "metrics.jsonl"


def create_run_folder(wanted: str | None, name: str, config: str) -> Path:
    """A new folder: `wanted`, or runs/NAME, runs/NAME-2 and so on. A run never overwrites another.

    Args:
        config: the text of its config.yaml.

    Raises:
        InputError: the wanted folder holds something already, or cannot be made; nothing is left then.
    """
    if wanted is not None:
        folder = Path(wanted)
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(
                f"run.dir: {folder} holds something already; choose another, or continue that run with "
                f"--resume {folder}"
            )
        return _make(folder, config)
    for number in itertools.count(1):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return _make(folder, config)
    raise AssertionError("unreachable")


def _make(folder: Path, config: str) -> Path:
    checkpoints = folder / "checkpoints"
    made = [path for path in (checkpoints, folder, *folder.parents) if not path.exists()]
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", config)
    except OSError as error:
        _remove(made)
        raise InputError(
            f"run.dir: {folder} cannot be written to ({error.strerror}); choose another"
        ) from None
    except InputError:
        _remove(made)
        raise
    return folder


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # some were not made yet
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing.

    Raises:
        InputError: no permission or no space.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl.

    Raises:
        InputError: no permission or no space.
    """
    try:
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {folder / METRICS}: {error.strerror}") from None


def forget_metrics_after(folder: Path, step: int) -> None:
    """Drop what was logged after the step that a resumed run continues from."""
    path = folder / METRICS
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line cut off when the run was stopped
    write_text(path, "".join(line + "\n" for line in kept))
