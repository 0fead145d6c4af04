"""What must be the same in all processes of a training, compared before anything is built.

Processes with different settings would make different collective calls and wait for each other forever, or
silently average gradients of different weights.
"""

import hashlib
import platform
from pathlib import Path
from typing import Any

from detector.builders.device import build_amp, build_device
from detector.config import Config
from detector.config.fields import leaf_values
from detector.training.processes import Processes
from detector.training.run_folder import versions
from errors import InputError

_ROOT = Path(__file__).parents[2]
# Settings that may differ by machine: where its files are, and how they are read.
_OWN = frozenset(
    {
        "run.dir",
        "data.root",
        "data.annotations",
        "data.images",
        "data.workers",
        "data.cache",
        "data.cache_dir",
        "data.check",
        "model.init",
        "train.device",
        "train.profile",
    }
)
_SHOWN = 60  # characters shown of a value


def refuse_different(
    processes: Processes, config: Config, resumes: bool = False, dry_run: bool = False
) -> None:
    """Compare the settings and environment of all processes; every process must call this.

    Raises:
        InputError: this process differs from the main one.
        Bystander: another process does.
    """
    if processes.size == 1:
        return
    mine = _facts(config, processes.local_rank, resumes, dry_run)
    first = processes.from_main(lambda: mine)
    for key, value in mine.items():
        if value != first.get(key):
            raise InputError(
                f"{key} is {_shown(value)} on {platform.node()}, but {_shown(first.get(key))} in the first "
                "process; start all processes with the same command, configuration and code"
            )
    processes.barrier()  # a refused process does not arrive, and the others learn of it here


def _facts(config: Config, local_rank: int, resumes: bool, dry_run: bool) -> dict[str, Any]:
    """What is compared, by the name that messages show."""
    device = build_device(config.train.device, local_rank)
    values = {key: value for key, value in leaf_values(config).items() if key not in _OWN}
    return {
        "--resume": resumes,
        "--dry-run": dry_run,
        **{name: _release(version) for name, version in versions().items()},
        **values,
        "the kind of train.device": device.type,
        "the precision chosen by train.amp": str(build_amp(config.train, device)),
        "the checksum of the program": _checksum(),
    }


def _checksum() -> str:
    """Hash of all modules of the program."""
    digest = hashlib.blake2b(digest_size=8)
    # Not all of data/: users put their data sets there.
    patterns = (
        "train.py",
        "doors.py",
        "errors.py",
        "detector/**/*.py",
        "data/*.py",
        "data/check/*.py",
        "data/split/*.py",
    )
    for path in sorted(path for pattern in patterns for path in _ROOT.glob(pattern)):
        if path.is_file() and not path.name.startswith("."):  # temporary files of editors
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _release(version: str) -> str:
    """Major and minor version, without the patch level and the build (+cu128)."""
    return ".".join(version.partition("+")[0].split(".")[:2])


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
