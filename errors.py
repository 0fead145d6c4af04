"""The one exception type that the command line turns into one line and exit code 2."""


class InputError(Exception):
    """Something the user gave is wrong: what, where, and what to do, in one line."""
