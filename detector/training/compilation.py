"""torch.compile as an option: which parts, whether it took effect, and errors in one line."""

import contextlib
from collections.abc import Iterator

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from detector.retinanet import RetinaNet
from detector.training.stop import StopRequest
from errors import InputError, Stopped, first_line

_MOST_GRAPHS = 64  # graphs per function; dynamo's default is 8


def compile_parts(model: RetinaNet, backend: str = "inductor") -> None:
    """Compile backbone, pyramid and heads in place; anchors and normalisation stay uncompiled."""
    # Each image shape may need its own graph, and so may passes without gradients.
    for name in ("recompile_limit", "cache_size_limit"):  # the latter: name up to torch 2.6
        if hasattr(torch._dynamo.config, name):
            setattr(torch._dynamo.config, name, _MOST_GRAPHS)
    for part in (model.backbone, model.pyramid, model.class_head, model.box_head):
        part.compile(backend=backend)


def compilation_report(shapes: int) -> str:
    """What has been compiled so far, in one line.

    Args:
        shapes: number of different image shapes.
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
    """Turn a compilation failure into one line.

    Args:
        stop: a stop signal also reaches the compiler's processes, so their failure may be a consequence of
            it.
        then: what to do after being stopped, for the message.
        alone: there is only one process. Others may be waiting for this one and have to learn of its failure.

    Raises:
        InputError: compilation failed, or was stopped and there are several processes.
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
