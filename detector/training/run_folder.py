"""The run folder: configuration, metrics, checkpoints and TensorBoard events of one training."""

import contextlib
import json
import logging
import math
import os
import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import Timeout

from data.locks import locked
from detector.checkpoint import LAST, PREVIOUS, load_newest
from detector.output import (
    TEMPORARY,
    check_new_folder,
    discard,
    numbered_folders,
    refuse_dead_link,
    sync,
    write_text,
)
from detector.training.launch import Launch
from errors import InputError

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_RUNS = "runs"
_LOCK, _LAUNCH = ".lock", ".launch"


@contextlib.contextmanager
def new_run_folder(wanted: str | None, name: str, config: str) -> Iterator[Path]:
    """Create and lock a new run folder: `wanted`, or runs/NAME, runs/NAME-2 and so on.

    A run never overwrites another.

    Args:
        wanted: run.dir, or None.
        name: name of the run if `wanted` is None.
        config: the text of its config.yaml.

    Raises:
        InputError: the wanted folder is not empty, or cannot be created; nothing is left behind then.
    """
    with contextlib.ExitStack() as kept:
        yield _begin(wanted, name, config, kept)


def _begin(wanted: str | None, name: str, config: str, kept: contextlib.ExitStack) -> Path:
    if wanted is not None:
        refuse_taken(wanted)
        return _make(Path(wanted), config, False, kept)
    for folder in numbered_folders(Path(_RUNS) / name):
        with contextlib.suppress(FileExistsError):
            return _make(folder, config, True, kept)
    raise AssertionError("unreachable")


def refuse_taken(wanted: str | None) -> None:
    """Check run.dir before the work begins.

    Raises:
        InputError: the folder is not empty or cannot be created; or, without run.dir, runs/ is a broken link.
    """
    if wanted is None:
        refuse_dead_link("run.dir", Path(_RUNS))
        return
    check_new_folder("run.dir", Path(wanted))
    if Path(wanted).is_dir() and not _is_bare(Path(wanted)):
        raise InputError(
            f"run.dir: {wanted} is not empty; choose another folder, or continue that run with --resume "
            f"{wanted}"
        )


def _is_bare(folder: Path) -> bool:
    """Whether a folder has nothing but what a run leaves if killed before writing its first file."""
    return all(
        path.name == _LOCK
        or (path.name.startswith(".") and path.name.endswith(TEMPORARY))
        or (path.name == "checkpoints" and path.is_dir() and not any(path.iterdir()))
        for path in folder.iterdir()
    )


def repair(folder: Path) -> None:
    """Prepare a run for resuming: create a missing checkpoint folder, remove half-written files.

    Raises:
        InputError: the folder is not writable.
    """
    checkpoints = folder / "checkpoints"
    refuse_dead_link("--resume", checkpoints)  # its disk may not be mounted
    try:
        checkpoints.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"--resume: {checkpoints} cannot be created: {error.strerror}") from None
    for left in (*folder.glob(f".*{TEMPORARY}"), *checkpoints.glob(f".*{TEMPORARY}")):
        discard(left)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock a run folder for this process. The system releases the lock however the process ends.

    Raises:
        InputError: another live process holds the lock, or the folder is not writable.
    """
    lock = contextlib.ExitStack()
    try:
        lock.enter_context(locked(folder / _LOCK, "no other training uses the folder", timeout=0))
    except Timeout:
        raise InputError(
            f"{folder} is in use by another training that is still running; stop it first, or start a new "
            "run with another run.dir"
        ) from None
    except OSError as error:
        raise InputError(
            f"run.dir: {folder} cannot be written to ({error.strerror}); fix that, or choose another folder "
            "(with --resume: continue a copy of the run)"
        ) from None
    with lock:
        yield


def made_with() -> str:
    """A comment for config.yaml: versions and threads, on which bit-identical repetition depends.

    A resumed run writes its own.
    """
    listed, threads = ", ".join(f"{name} {it}" for name, it in versions().items()), torch.get_num_threads()
    return f"# {listed}, {threads} thread{'s' * (threads != 1)}\n"


def versions() -> dict[str, str]:
    """Versions of the packages that affect results."""
    packages = ("torch", "torchvision", "numpy", "albumentations")
    return {name: metadata.version(name) for name in packages} | {"Python": platform.python_version()}


def mark_launch(folder: Path, launch: Launch) -> None:
    """Record which launch of torchrun a run belongs to."""
    write_text(folder / _LAUNCH, launch.mark)


def run_of_launch(wanted: str | None, name: str, launch: Launch) -> Path | None:
    """The run folder that a launch created before it was restarted; the latest, if its name was used twice.

    Args:
        wanted, name: see `new_run_folder`.
    """
    folders = [Path(wanted)] if wanted is not None else _numbered_so_far(Path(_RUNS) / name)
    own: list[tuple[int, Path]] = []
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):  # no mark, or an unreadable one
            mark = folder / _LAUNCH
            if launch.has_made(mark.read_text(encoding="utf-8")):
                own.append((mark.stat().st_mtime_ns, folder))
    return max(own)[1] if own else None


def _numbered_so_far(first: Path) -> list[Path]:
    """The existing folders among `numbered_folders`; some in between may have been deleted."""
    if not first.parent.is_dir():
        return []
    name = re.compile(re.escape(first.name) + r"(-\d+)?")
    return [folder for folder in first.parent.iterdir() if name.fullmatch(folder.name)]


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return any((folder / "checkpoints" / name).is_file() for name in (LAST, PREVIOUS))


def _make(folder: Path, config: str, new: bool, kept: contextlib.ExitStack) -> Path:
    """Create a folder with its config.yaml, which is written last and marks the run as begun."""
    checkpoints, lock = folder / "checkpoints", folder / _LOCK
    made = [path for path in (lock, checkpoints, folder, *folder.parents) if not path.exists()]
    own = False
    try:
        folder.mkdir(parents=True, exist_ok=not new)
        kept.enter_context(in_use(folder))
        refuse_taken(str(folder))  # another run may have begun in it meanwhile
        own = True
        checkpoints.mkdir(exist_ok=True)
        write_text(folder / "config.yaml", config, synced=True)
    except (OSError, InputError) as error:
        if new and os.path.lexists(folder) and isinstance(error, FileExistsError):  # created meanwhile
            raise
        kept.close()
        _remove([path for path in made if own or path != lock])
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"run.dir: {folder} cannot be written to ({error.strerror}); choose another folder"
        ) from None
    return folder


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # some may not exist
            path.unlink() if path.name == _LOCK else path.rmdir()


def append_metrics(folder: Path, record: dict[str, Any]) -> None:
    """Add a line to metrics.jsonl; non-finite numbers become null, as JSON does not have them.

    Raises:
        InputError: no permission or no space.
    """
    content = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }
    try:
        with (folder / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content, allow_nan=False) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {folder / METRICS}: {error.strerror}") from None


def sync_metrics(folder: Path) -> None:
    """Flush metrics.jsonl to disk, so that after a power failure it is as complete as the next checkpoint."""
    with contextlib.suppress(OSError):
        sync(folder / METRICS)


def forget_metrics_after(folder: Path, step: int, evaluated: int) -> dict[str, Any] | None:
    """Drop what was logged after the step from which a resumed run continues.

    Args:
        evaluated: the step of the last saved evaluation. One of `step` itself that was logged but not saved
            is dropped as well, as it will be repeated.

    Returns:
        If such an evaluation was dropped, what else was logged of `step` (may be empty); None otherwise.
    """
    path = folder / METRICS
    if not path.exists():
        return None
    kept, beside, repeated = [], dict[str, Any](), False
    before = path.read_text(encoding="utf-8", errors="replace")
    for line in before.splitlines():
        try:
            record = json.loads(line)
            if record["step"] > step:
                continue
            if record["step"] == step > evaluated and "AP" in record:
                repeated = True
                continue
            if record["step"] == step:
                beside = record
            kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line truncated when the run was stopped
    after = "".join(line + "\n" for line in kept)
    if after != before:  # avoid rewriting: it is large for a long run
        write_text(path, after, synced=True)
    return beside if repeated else None


def _edited(written: Path, config: dict[str, Any]) -> str | None:
    """The first key whose value in config.yaml differs from the checkpoint, as KEY=VALUE of the checkpoint.

    None if there is no difference or the file cannot be read.
    """
    try:
        content = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(content, dict):
        return None
    return next((f"{key}={its}" for key, its, _ in changed_keys(config, content)), None)


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The keys in which two plain configurations differ: section.key, value before, value now."""
    for section, values in before.items():
        others = now.get(section)
        if isinstance(others, dict):
            yield from (
                (f"{section}.{key}", value, others[key])
                for key, value in values.items()
                if key in others and others[key] != value
            )


def measures_otherwise(key: str, before: Any, now: Any) -> bool:
    """Whether AP before and after a change (see `changed_keys`) cannot be compared."""
    for mapping, part in (("data.splits", "val"), ("data.transforms", "eval")):
        if key == mapping:
            return before.get(part) != now.get(part)
    other_numbers = key.startswith("eval.") and key[5:] not in (
        "batch_size",
        "tile_batch_size",
        "backend",
        "calibrate",
    )
    return key == "data.image_size" or other_numbers


def run_to_resume(path: Path) -> Path:
    """The run folder that --resume names, directly or by its newest checkpoint.

    Raises:
        InputError: it names another file.
    """
    folder = Path(os.path.abspath(path)).parent  # noqa: PTH100  resolve() would follow links
    if path.name == LAST and folder.name == "checkpoints":  # the file may be lost while PREVIOUS exists
        return path.parent.parent if path.parent.name == "checkpoints" else folder.parent
    if not path.is_file():
        return path
    raise InputError(f"--resume: {path} is a file; give the folder of the run, or its checkpoints/{LAST}")


def resume_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run in a folder, as plain values.

    Raises:
        InputError: there is no run to continue.
    """
    if not folder.is_dir():
        raise InputError(f"--resume: the run folder {folder} does not exist")
    written = folder / "config.yaml"
    if has_checkpoint(folder):
        config = load_newest(folder, say=False)["config"]  # reported when it is resumed
        if (changed := _edited(written, config)) is not None:
            log.warning(
                "%s is only a record and is not read: the run continues with the settings of its "
                "checkpoint (%s); give changes on the command line",
                written, changed,
            )  # fmt: skip
        return config
    if not written.is_file():
        raise InputError(f"--resume: {folder} has no checkpoints/{LAST} to continue from")
    log.warning(f"{folder} has no checkpoint yet; the run starts from its first step")
    try:
        content = yaml.safe_load(written.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):  # e.g. empty after a power failure
        raise InputError(f"--resume: {written} cannot be read, and there is no checkpoint")
    return content
