"""How the loops of compiled.py become machine code, by numba: one pass where PyTorch takes ten.

In value_loops.py and step_loops.py all arrays are given, those to be filled included. Pairs that are used
together lie together ([n, 2]): what a loop looks up is in no cache, and one miss costs less than two. Few
comparisons are branches, since the processor could foresee none of them. Floats become signed integers,
which AVX2 does in one step, and indices are unsigned, since numba looks whether a signed one is negative.
"""

from collections.abc import Callable
from functools import cache, partial, wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar, cast

from numpy.typing import NDArray

Array = NDArray[Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_ONCE = Lock()  # several threads may be first


def compiled_loop(loop: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile at the first call, and keep the machine code for the next process."""

    @cache
    def fast() -> Callable[Arguments, Result]:
        from numba import njit  # takes a second, which only training should pay

        compiler = partial(njit, nogil=True, error_model="numpy")
        try:
            made = compiler(cache=True)(loop)
        except RuntimeError:  # nowhere to keep the machine code: neither beside this file nor at home
            made = compiler()(loop)
        return cast(Callable[Arguments, Result], made)

    @wraps(loop)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with _ONCE:
            ready = fast()
        return ready(*args, **kwargs)

    return call
