"""Turns out-of-memory errors into advice on what to lower; and a process's peak memory."""

import contextlib
import resource
import sys
from collections.abc import Iterator

import torch

from errors import InputError, first_line

_FOR_TRAINING = (
    "raise train.accumulate (the same batch in smaller parts), lower eval.batch_size (with tiles: "
    "eval.tile_batch_size) or the image size in data.transforms, and continue with --resume; or start a "
    "new run with a lower train.batch_size"
)
# Messages of the CPU's allocator, Windows', MPS, and CUDA outside torch's allocator; then cuBLAS and cuDNN.
_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "unable to find an engine to execute",
    "Unable to find a valid cuDNN algorithm",
)


def peak_bytes() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports a lack of memory, on a GPU or in the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextlib.contextmanager
def memory_explained(device: torch.device, remedy: str = _FOR_TRAINING) -> Iterator[None]:
    """If memory runs out, say what to lower.

    Raises:
        InputError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error).split(". ")[0]
        raise InputError(f"{device} has too little memory ({reason}); {remedy}") from None
