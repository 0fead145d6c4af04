"""What all programs share, seen from outside."""

import errno
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import doors
import evaluate
import export
import predict
import train
from data.check import __main__ as check
from data.split import __main__ as split
from tests.runs import Outcome, assert_one_line, call

FAULTS_OF_TEN_STEPS = """
import resource
import numpy as np
import doors
{call}
def step():
    blocks = [np.ones(size, np.uint8) for size in (200_000, 3_000_000, 50_000_000)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_used_again_and_not_cleared_again() -> None:
    def faults(call: str) -> int:
        words = [sys.executable, "-c", FAULTS_OF_TEN_STEPS.format(call=call)]
        return int(subprocess.check_output(words, cwd=Path(doors.__file__).parent))

    assert faults("doors.keep_freed_memory()") < faults("") / 10


@pytest.mark.parametrize("door", ["train.py", "evaluate.py", "predict.py", "export.py"])
def test_outside_the_environment_one_line_says_so(tmp_path: Path, door: str) -> None:
    """Python without its site-packages plays the part of the system's Python."""
    root = Path(doors.__file__).parent
    words = [sys.executable, "-S", str(root / door), *(["x", "y"] if door != "train.py" else [])]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert_one_line(Outcome(done.returncode, done.stdout, done.stderr), "is not installed for")


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours(tmp_path: Path) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'detector.nothing'", name="detector.nothing")

    with pytest.raises(ModuleNotFoundError):
        call(main, cwd=tmp_path)


def test_torch_and_torchvision_of_two_releases_are_one_line(tmp_path: Path) -> None:
    def main() -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    assert_one_line(call(main, cwd=tmp_path), "do not match", "make setup")


def test_the_configuration_is_found_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.yaml").touch()
    Path("c.yaml").touch()
    long = f"data.transforms.train=[{'x' * 300}]"
    for words, config, overrides in (
        (["k=v", "c.yaml", long], "c.yaml", ["k=v", long]),
        (["gone.yaml", "k=v"], "gone.yaml", ["k=v"]),
        (["train.epochs", "c.yaml"], "c.yaml", ["train.epochs"]),
        (["a=b.yaml", "k=v"], "a=b.yaml", ["k=v"]),
        ([long], None, [long]),
    ):
        assert doors.config_and_overrides(words) == (config, overrides)


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    name = "a" * 300
    assert_one_line(call(lambda: print(Path(name).stat()), cwd=tmp_path), name, "name too long")


def test_an_error_of_the_system_that_is_of_no_file_names_none(tmp_path: Path) -> None:
    def main() -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    outcome = call(main, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (2, "error: Cannot allocate memory\n")


def test_a_name_in_no_encoding_can_be_printed() -> None:
    """A file system accepts any bytes as a name."""
    program = "import doors; doors.run_door(lambda: print('caf\\udce9'))"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=Path(doors.__file__).parent, capture_output=True, env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, b"caf\\udce9")


@pytest.mark.parametrize("line", ["print('x' * 9999)", "monitor.say('x' * 9999)"])
def test_a_reader_that_has_gone_is_no_fault(tmp_path: Path, line: str) -> None:
    """As with `| head -1`; training continues to its end."""
    program = f"""
from pathlib import Path
from doors import run_door
from detector.training.monitor import Monitor
from detector.training.run_log import RunLog
def main():
    monitor = Monitor(Path({str(tmp_path)!r}), 1, 0, None, RunLog())
    for _ in range(100):
        {line}
    Path({str(tmp_path / "end")!r}).touch()
run_door(main)
"""
    words = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=Path(doors.__file__).parent, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert (tmp_path / "end").exists() == ("say" in line)


@pytest.mark.parametrize(
    "door", [train.main, evaluate.main, predict.main, export.main, check.main, split.main]
)
def test_a_variable_that_is_not_set_is_not_the_current_folder(
    door: Callable[[], None], tmp_path: Path
) -> None:
    assert_one_line(call(door, "", cwd=tmp_path), "an argument is empty")
    for words in (("run", "--output", ""), ("run", "--output=")):
        assert_one_line(call(door, *words, cwd=tmp_path), "an argument is empty")


def test_an_option_of_another_trainer_is_known_by_what_it_does_there(tmp_path: Path) -> None:
    """--name is the name of the run there, although loss.name and other keys end in it."""
    assert_one_line(call(train.main, "own.yaml", "--name", "mine", cwd=tmp_path), "; use run.dir,")
