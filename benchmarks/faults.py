"""Claim: a training run killed at random, over and over, ends with the weights of an undisturbed run.

Trains once undisturbed, and once with many SIGKILLs, at random moments and during saving, each followed by
--resume. Run from the root: python -m benchmarks.faults
"""

import argparse
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/faults.py`

import torch

from benchmarks.measure import report, section
from detector.checkpoint import load_checkpoint
from errors import InputError

ROOT = Path(__file__).resolve().parents[1]
HEADER = ("kills", "of these while saving", "resumed", "last.pt damaged", "weights of the undisturbed run")


@dataclass
class Campaign:
    """Statistics of a training run that was killed over and over."""

    kills: int = 0
    while_saving: int = 0
    resumed: int = 0
    damaged: int = 0  # unreadable checkpoints


def start(command: Sequence[str], log: Path) -> subprocess.Popen:
    """Start train.py with the arguments `command`; its output is appended to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *command],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def steps_done(run: Path) -> int:
    """The number of lines of metrics.jsonl, which grows with every step if each one is logged."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_and_kill(process: subprocess.Popen, run: Path, while_saving: bool, rng: random.Random) -> bool:
    """Kill a training run after some progress; False if it ended before.

    Args:
        while_saving: kill shortly after the temporary file of a checkpoint appears.
    """
    before = steps_done(run)
    temporary = run / "checkpoints" / ".last.pt.tmp"
    progress, delay = rng.randrange(1, 12), rng.uniform(0, 0.15)
    while process.poll() is None and steps_done(run) < before + progress:
        time.sleep(0.02)
    if while_saving:
        while process.poll() is None and not temporary.exists():
            pass
    time.sleep(delay * (0.3 if while_saving else 1))
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def campaign(
    words: Sequence[str], run: Path, kills: int, while_saving: int, seed: int, log: Path
) -> Campaign:
    """Train into `run` with arguments `words`, killed `kills` times, `while_saving` of them during saving.

    Raises:
        RuntimeError: the run ended early, or could not be resumed.
    """
    rng = random.Random(seed)
    kinds = [True] * while_saving + [False] * (kills - while_saving)
    rng.shuffle(kinds)
    done = Campaign()
    process = start([*words, f"run.dir={run}"], log)
    for saving in kinds:
        if not wait_and_kill(process, run, saving, rng):
            raise RuntimeError(f"the run ended before all kills (code {process.returncode}); see {log}")
        done.kills += 1
        done.while_saving += saving
        done.damaged += not readable(run)
        process = start(["--resume", str(run)], log)
        done.resumed += 1
    if process.wait() != 0:
        raise RuntimeError(f"the last resumption failed; see {log}")
    return done


def readable(run: Path) -> bool:
    """Whether last.pt, if there is one, is undamaged."""
    path = run / "checkpoints" / "last.pt"
    try:
        return not path.is_file() or bool(load_checkpoint(path))
    except InputError:
        return False


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with bitwise identical weights, optimizer state and weight average."""
    ends = [load_checkpoint(run / "checkpoints" / "last.pt") for run in (one, other)]
    return all(_equal(ends[0][key], ends[1][key]) for key in ("model", "training", "metrics", "step"))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_equal(one[k], other[k]) for k in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill the training of the demo over and over.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--while-saving", type=int, default=20)
    parser.add_argument("--images", type=int, default=1300, help="of the demo set")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the demo's configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        words = [
            str(ROOT / "configs" / "demo.yaml"),
            f"data.root={folder / 'set'}",
            f"data.shapes_train_images={arguments.images}",
            f"train.epochs={arguments.epochs}",
            "train.save_every_steps=4",
            "train.log_every=1",
            "train.device=cpu",
            *arguments.overrides,
        ]
        log, straight, killed = folder / "log.txt", folder / "straight", folder / "killed"
        if start([*words, f"run.dir={straight}"], log).wait() != 0:
            raise SystemExit(f"the undisturbed run failed:\n{log.read_text()}")
        done = campaign(words, killed, arguments.kills, arguments.while_saving, arguments.seed, log)
        equal = same_weights(straight, killed)
    row = [
        str(done.kills),
        str(done.while_saving),
        f"{done.resumed} of {done.kills}",
        str(done.damaged),
        "bit for bit" if equal else "NO",
    ]
    note = (
        f"The demo ({arguments.images} images, {arguments.epochs} epochs, saved every 4 steps) in one "
        'process, loading processes as configured. SIGKILL after a random number of steps; "while saving" '
        "waits for the temporary file of a checkpoint and kills up to 45 ms later."
    )
    report([section("Killed over and over: cpu", HEADER, [row], note)], arguments.output)
    if not equal:
        raise SystemExit("the weights differ")


if __name__ == "__main__":
    main()
