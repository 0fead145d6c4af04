"""Functions that torch.compile is to call as they are."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Within what torch.compile compiles the function stays a call.

    Traced, a ranking would be compiled anew for each number of positives, and numba's compiler with it.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            # Not where the function is defined: that imports the compiler, which takes a second and more.
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call
