"""The exceptions that the command line turns into one line and an exit code."""


class InputError(Exception):
    """Something the user gave is wrong: what, where, and what to do, in one line."""


class Stopped(Exception):
    """The work was asked to stop and has saved what it had; the message says how to continue."""


class Bystander(Exception):
    """Another process of the training has failed and says why."""
