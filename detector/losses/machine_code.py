"""How the loops of compiled.py become machine code, by numba: one pass where PyTorch takes ten.

In value_loops.py, step_loops.py and window_loops.py all arrays are given, those to be filled included. Pairs
that are used together lie together ([n, 2]): what a loop looks up is in no cache, and one miss costs less
than two. Few comparisons are branches, since the processor could foresee none of them, and those of a search
are between integers, which it makes more of at a time. Floats become signed integers, which AVX2 does in
one step, and indices are unsigned, since numba looks whether a signed one is negative.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache, partial, wraps
from importlib.util import find_spec
from threading import Lock
from typing import Any, ParamSpec, TypeVar, cast

from numpy.typing import NDArray

from errors import first_line

Array = NDArray[Any]
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_ONCE = Lock()  # several threads may be first

log = logging.getLogger(__name__)


@cache
def numba_works() -> bool:
    """Whether numba is there, and goes with what else is; one line is logged where it does not."""
    if find_spec("numba") is None:  # there may be no wheel for a machine or a Python
        return False
    if sys.byteorder != "little":  # which the loops take their words for
        return False
    try:
        import numba  # noqa: F401  takes a second, which only training should pay
    except (ImportError, OSError) as error:  # of another NumPy, say
        reason = first_line(error)
        log.warning(
            "numba is installed but does not work here (%s), so losses are computed without it, more slowly",
            reason,
        )
        return False
    return True


def compiled_loop(loop: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile at the first call, and keep the machine code for the next process."""

    made: Callable[Arguments, Result] | None = None

    def fast() -> Callable[Arguments, Result]:
        from numba import njit

        compiler = partial(njit, nogil=True, error_model="numpy")
        try:
            compiled = compiler(cache=True)(loop)
        except RuntimeError:  # nowhere to keep the machine code: neither beside this file nor at home
            compiled = compiler()(loop)
        return cast(Callable[Arguments, Result], compiled)

    @wraps(loop)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        nonlocal made
        ready = made
        if ready is None:
            with _ONCE:
                ready = made = made or fast()
        try:
            return ready(*args, **kwargs)
        except OSError:  # of the first call alone: it is compiled by then, but the disk to keep it on is full
            return ready(*args, **kwargs)

    return call
