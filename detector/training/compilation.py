"""torch.compile as an option: which parts, whether it took effect, and what is said when it cannot."""

import contextlib
from collections.abc import Iterator

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from detector.retinanet import RetinaNet
from detector.training.stop import StopRequest
from errors import InputError, Stopped, first_line

_MOST_GRAPHS = 64  # of a function, where dynamo's own limit is 8


def compile_parts(model: RetinaNet, backend: str = "inductor") -> None:
    """Compile backbone, pyramid and heads in place; anchors and normalising stay as they are."""
    # Each shape of images may want a graph of its own, and so may a pass without gradients.
    for name in ("recompile_limit", "cache_size_limit"):  # the latter up to torch 2.6
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, _MOST_GRAPHS)
    for part in (model.backbone, model.pyramid, model.class_head, model.box_head):
        part.compile(backend=backend)


def compilation_report(shapes: int) -> str:
    """What has been compiled so far, in one line.

    Args:
        shapes: how many different image shapes there were.
    """
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    if not graphs:
        return "train.compile: nothing was compiled; the network runs uncompiled"
    said = f"train.compile: {graphs} graphs compiled for {shapes} image shapes, {breaks} graph breaks"
    if counters["frames"]["total"] > counters["frames"]["ok"]:
        said += "; parts of the network run uncompiled: fewer image shapes may help"
    return said


@contextlib.contextmanager
def compilation_explained(
    stop: StopRequest | None = None, then: str = "", alone: bool = True
) -> Iterator[None]:
    """Turn a failure to compile into one line.

    Args:
        stop: what asks for the end of it; the compiler's own processes may have heard it too, and failed.
        then: what to do after that.
        alone: no other process has to hear of it, as those may be waiting for this one.

    Raises:
        InputError: it failed, or was stopped and this process is not alone.
        Stopped: it was stopped.
    """
    try:
        yield
    except TorchDynamoException as error:
        if stop:
            stop.served = True
            kind = Stopped if alone else InputError
            raise kind(f"stopped by {stop.signal} while the network was being compiled; {then}") from None
        reason = first_line(error)
        raise InputError(
            f"train.compile: torch.compile cannot compile the network here ({reason}); it needs a C++ "
            "compiler, and Triton on a GPU; set train.compile=false"
        ) from None
