"""What the command-line programs share: argument parsing, memory settings, exit codes."""

import argparse
import ctypes
import io
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2

if sys.version_info < (3, 10):  # noqa: UP036  the system's Python, if the environment is not activated
    sys.stderr.write(
        f"error: Python 3.10 or newer is required, but {sys.executable} is {sys.version.split()[0]}; "
        "activate the project's environment (source .venv/bin/activate) or create it (make setup)\n"
    )
    sys.exit(BAD_INPUT)

from data import lookup  # noqa: E402
from detector.output import close_output, print_last  # noqa: E402
from errors import Bystander, InputError, Stopped, in_one_line  # noqa: E402

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run it again
INTERRUPTED = 130

_HERE = Path(__file__).resolve().parent
_FIRST = "give the run folder or checkpoint as the first argument, without an option"
NAMES_OF_THE_RUN = dict.fromkeys(("weights", "model", "ckpt", "checkpoint", "resume"), _FIRST)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


class OptionParser(argparse.ArgumentParser):
    """An argparse parser that reports a wrong command line in one line, like all bad input.

    Args:
        elsewhere: options of other trainers, such as `NAMES_OF_THE_RUN`, and what to use instead.
    """

    def __init__(self, *, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._elsewhere = elsewhere or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Like argparse's, but refuses empty arguments (also --output=), which mean the current folder."""
        words = sys.argv[1:] if args is None else list(args)
        if any(re.fullmatch(r"(--[\w-]+=)?", word) for word in words):
            raise InputError(
                "an argument is empty, perhaps from a variable that is not set; for the current folder "
                "write ."
            )
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}{self._hint(message)} (see {self.prog} --help)")

    def _hint(self, message: str) -> str:
        unknown = re.match(r"unrecognized arguments: --?([\w-]+)", message)
        if unknown is None:
            return ""
        from detector.config.hints import setting_called

        name = unknown[1].replace("-", "_").lower()
        hint = self._elsewhere.get(name) or setting_called(name, ", written KEY=VALUE without dashes")
        return f"; {hint}" if hint else ""


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {in_one_line(record.getMessage())}"


def _silent_where_raised_again(arguments: threading.ExceptHookArgs) -> None:
    # A full disk kills TensorBoard's writing thread, which then raises the error in the main thread too.
    if not issubclass(arguments.exc_type, OSError):
        threading.__excepthook__(arguments)


def is_there(word: str) -> bool:
    """Whether a command-line word is an existing file or folder, not KEY=VALUE."""
    return lookup.is_there(Path(word))


def is_file(word: str) -> bool:
    """Whether a command-line word is a file or a pipe."""
    return is_there(word) and not Path(word).is_dir()


def config_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split words of a command line into CONFIG, at any position, and the KEY=VALUE overrides."""
    names = [word for word in words if "=" not in word or is_file(word)]
    config = next((name for name in names if is_file(name)), names[0] if names else None)
    overrides = list(words)
    if config is not None:
        overrides.remove(config)
    return config, overrides


def this_python() -> str:
    """The command that starts the running Python."""
    on_path = shutil.which("python")
    if on_path is not None and Path(on_path).absolute() == Path(sys.executable):
        return "python"
    return seen_from_here(Path(sys.executable))


def seen_from_here(path: Path) -> str:
    """A path for use on a command line: relative if it is below the current folder."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed blocks, because the next step requests the same ones.

    By default large blocks are returned to the system and come back as fresh pages that it clears one by one:
    some 20,000 page faults per step of a small network, a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def open_missing_streams() -> None:
    """Replace standard streams that the caller has closed (2>&-)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))


def print_any_name() -> None:
    """Print undecodable file names with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_line(text: str) -> None:
    """Print a line immediately; a reader that has gone (| head) is no error, and the work continues."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_output()


def run_door(main: Callable[[], None]) -> None:
    """Run a program and set its exit code.

    Bad input ends in one line and code 2, a training that was stopped and has saved its state in 75, Ctrl-C
    elsewhere in 130.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    threading.excepthook = _silent_where_raised_again
    keep_freed_memory()
    open_missing_streams()
    print_any_name()
    try:
        main()
        sys.stdout.flush()  # here, where a closed pipe is handled
    except InputError as error:
        _refuse(str(error))
    except Bystander:
        sys.exit(BAD_INPUT)
    except Stopped as reason:
        from detector.training.stop import deaf_at_the_end  # imported already by what was stopped

        deaf_at_the_end()
        if str(reason):
            print_last(str(reason))
        sys.exit(STOPPED)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if (_HERE / name).exists() or (_HERE / f"{name}.py").exists():  # one of our own modules: a bug
            raise
        _refuse(_not_installed(name))
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _refuse("the installed torch and torchvision do not match; delete .venv and run make setup")
    except BrokenPipeError:  # | head
        close_output()
    except OSError as error:  # wherever it occurs: a path that is too long, a disk that does not respond
        where = f"{error.filename}: " if error.filename is not None else ""
        _refuse(f"{where}{error.strerror or error}")
    except KeyboardInterrupt:
        print_last("interrupted")
        sys.exit(INTERRUPTED)


def _refuse(text: str) -> NoReturn:
    print_last(f"error: {in_one_line(text)}")
    sys.exit(BAD_INPUT)


def _not_installed(package: str) -> str:
    active = _HERE / ".venv" / "bin" / "activate"
    remedy = "run make setup, or python -m pip install -r requirements.txt"
    if active.is_file() and Path(sys.prefix).resolve() != active.parents[1].resolve():
        remedy = f"activate the environment: source {os.path.relpath(active)}"
    return f"{package} is not installed for {sys.executable}; {remedy}"
