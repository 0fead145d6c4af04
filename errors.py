"""The exceptions that the command line turns into one line and an exit code, and that line."""

from collections.abc import Sequence


class InputError(Exception):
    """Something the user gave is wrong: what, where, and what to do, in one line."""


class Stopped(Exception):
    """The work was asked to stop and has saved what it had; the message says how to continue.

    It is empty where another process says it.
    """


class Bystander(Exception):
    """Another process of the training has failed and says why."""


def number_of(option: str, text: str) -> float:
    """The number that an option was given. Raises InputError: it is none."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: '{text}' is not a number") from None


def some_of(names: Sequence[str], most: int) -> str:
    """The first of the names, in one line, and dots for the rest."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def reason_of(error: BaseException) -> str:
    """Why, without the place where it is that of a file: that has been named."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_one_line(text: str) -> str:
    """With escapes for what begins a line, which names of files may hold."""
    return text.replace("\n", "\\n").replace("\r", "\\r")
