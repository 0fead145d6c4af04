"""Functions that torch.compile calls without tracing them."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Created on demand: torch.compiler.disable imports the compiler, which takes over a second. And kept, or the
# code around them would be compiled again.
_EAGER: dict[Callable[..., Any], Callable[..., Any]] = {}


def uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep the function a plain call in code that torch.compile compiles.

    If traced, a ranking would be recompiled for each number of positives, and numba's compiler traced with
    it; and as the gradient is computed with the loss, there is nothing for the compiler to gain.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            if function not in _EAGER:
                _EAGER[function] = torch.compiler.disable(function)
            return _EAGER[function](*args, **kwargs)
        return function(*args, **kwargs)

    return call
