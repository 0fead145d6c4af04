"""What the command-line programs share: how they take memory, and how they end."""

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

if sys.version_info < (3, 10):  # noqa: UP036  who forgot to activate the environment has the system's
    sys.stderr.write(
        f"error: Python 3.10 or newer is required, but {sys.executable} is {sys.version.split()[0]}; "
        "activate the project's environment (source .venv/bin/activate) or create it (make setup)\n"
    )
    sys.exit(BAD_INPUT)

from data import lookup  # noqa: E402
from detector.output import close_output, print_last  # noqa: E402
from errors import Bystander, InputError, Stopped, in_one_line  # noqa: E402

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, run it again
INTERRUPTED = 130

_HERE = Path(__file__).resolve().parent
_FIRST = "give the run folder or checkpoint as the first argument, without an option"
NAMES_OF_THE_RUN = dict.fromkeys(("weights", "model", "ckpt", "checkpoint", "resume"), _FIRST)
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


class OptionParser(argparse.ArgumentParser):
    """argparse's, with a wrong command line in one line as all bad input.

    Args:
        elsewhere: options of other trainers, as in `NAMES_OF_THE_RUN`, and what to do here.
    """

    def __init__(self, *, elsewhere: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._elsewhere = elsewhere or {}

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ever, of words; an empty one, or --output= without more, would be the current folder."""
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
    """Whether a word of the command line is a file or folder, and no KEY=VALUE."""
    return lookup.is_there(Path(word))


def is_file(word: str) -> bool:
    """Whether a word of the command line is a file, or a pipe."""
    return is_there(word) and not Path(word).is_dir()


def config_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """CONFIG, wherever it stands among the words of a command line, and the others, KEY=VALUE."""
    names = [word for word in words if "=" not in word or is_file(word)]
    config = next((name for name in names if is_file(name)), names[0] if names else None)
    overrides = list(words)
    if config is not None:
        overrides.remove(config)
    return config, overrides


def this_python() -> str:
    """How the running Python is called on a command line."""
    on_path = shutil.which("python")
    if on_path is not None and Path(on_path).absolute() == Path(sys.executable):
        return "python"
    return seen_from_here(Path(sys.executable))


def seen_from_here(path: Path) -> str:
    """An absolute path as a command line needs it: without the current folder, if it is below that."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def keep_freed_memory() -> None:
    """Let glibc's malloc hold on to freed blocks: the next step asks for the very same ones.

    By default it gives large blocks back, and gets them again as fresh pages that the system clears one
    by one: some 20,000 page faults in a step of a small network, a tenth of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def open_missing_streams() -> None:
    """Stand in for streams that whoever started the program has closed (2>&-)."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))


def print_any_name() -> None:
    """Let names of files that are in no encoding be printed, with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_line(text: str) -> None:
    """Print a line at once; a reader that has gone (| head) is no failure, and what is under way goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        close_output()


def run_door(main: Callable[[], None]) -> None:
    """Run a program: bad input ends in one line and exit code 2, a training that was stopped and has
    saved its state in 75, Ctrl-C elsewhere in 130."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    threading.excepthook = _silent_where_raised_again
    keep_freed_memory()
    open_missing_streams()
    print_any_name()
    try:
        main()
        sys.stdout.flush()  # here, where a reader that has gone is no failure
    except InputError as error:
        _refuse(str(error))
    except Bystander:
        sys.exit(BAD_INPUT)
    except Stopped as reason:
        from detector.training.stop import deaf_at_the_end  # there already: it is what was stopped

        deaf_at_the_end()
        if str(reason):
            print_last(str(reason))
        sys.exit(STOPPED)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if (_HERE / name).exists() or (_HERE / f"{name}.py").exists():  # our own: not for the user to mend
            raise
        _refuse(_not_installed(name))
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        _refuse("the installed torch and torchvision do not match; delete .venv and run make setup")
    except BrokenPipeError:  # | head
        close_output()
    except OSError as error:  # a path that is too long, a disk that does not answer: wherever it was met
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
