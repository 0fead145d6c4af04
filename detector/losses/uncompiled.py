"""Functions that torch.compile is to call as they are."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Made when they are needed: it imports the compiler, which takes a second and more. And kept, or what is
# compiled around them would be so anew.
_EAGER: dict[Callable[..., Any], Callable[..., Any]] = {}


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Within what torch.compile compiles the function stays a call.

    Traced, a ranking would be compiled anew for each number of positives, and numba's compiler with it; and a
    gradient that is computed with its loss gives the compiler nothing to do.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            if function not in _EAGER:
                _EAGER[function] = torch.compiler.disable(function)
            return _EAGER[function](*args, **kwargs)
        return function(*args, **kwargs)

    return call
