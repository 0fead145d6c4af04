"""Compiles the loops of compiled.py with numba: one pass where PyTorch takes ten.

In value_loops.py, step_loops.py and window_loops.py the caller passes all arrays, including those to be
filled. Pairs used together lie together ([n, 2]): lookups miss the cache, and one miss costs less than two.
Few comparisons are branches, since they would be unpredictable, and searches compare integers, which the
processor does more of at a time. Floats are converted to signed integers, which AVX2 does in one step;
indices are unsigned, since numba checks signed ones for being negative.
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

_ONCE = Lock()  # several threads may make the first call

log = logging.getLogger(__name__)


@cache
def numba_works() -> bool:
    """Whether numba is installed and works with the other packages; logs one line if it does not."""
    if find_spec("numba") is None:  # some platforms and Python versions have no wheel
        return False
    if sys.byteorder != "little":  # the loops over 8-byte words assume it
        return False
    try:
        import numba  # noqa: F401  takes a second, which only training should pay
    except (ImportError, OSError) as error:  # e.g. an incompatible NumPy
        reason = first_line(error)
        log.warning(
            "numba is installed but does not work here (%s), so losses are computed without it, more slowly",
            reason,
        )
        return False
    return True


def compiled_loop(loop: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Compile at the first call, and cache the machine code for later processes."""

    made: Callable[Arguments, Result] | None = None

    def fast() -> Callable[Arguments, Result]:
        from numba import njit

        compiler = partial(njit, nogil=True, error_model="numpy")
        try:
            compiled = compiler(cache=True)(loop)
        except RuntimeError:  # no writable cache folder, neither beside this file nor in the home folder
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
        except OSError:  # only in the first call: it is compiled, but the disk is too full to cache it
            return ready(*args, **kwargs)

    return call
