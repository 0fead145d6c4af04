"""The exceptions that end a program with one line and an exit code, and helpers for that line."""

from collections.abc import Sequence


class InputError(Exception):
    """Invalid input of the user. The message says what, where, and what to do, in one line."""


class Stopped(Exception):
    """A requested stop; the state is saved, and the message says how to continue.

    The message is empty if another process prints it.
    """


class Bystander(Exception):
    """Another process of the training has failed and reports why."""


def number_of(option: str, text: str) -> float:
    """The value of an option as a number. Raises InputError if it is not one."""
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: '{text}' is not a number") from None


def some_of(names: Sequence[str], most: int) -> str:
    """The first `most` names in one line, with dots for the rest."""
    return ", ".join(names[:most]) + ", ..." * (len(names) > most)


def reason_of(error: BaseException) -> str:
    """The reason of an error, without the file name of an OSError, which messages give themselves."""
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def in_one_line(text: str) -> str:
    """Escape line breaks, which file names may contain."""
    return text.replace("\n", "\\n").replace("\r", "\\r")
