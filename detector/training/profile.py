"""Where the time of a step goes: named phases, and optionally torch's profiler over some steps."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function, schedule, tensorboard_trace_handler

PHASES = ("data", "agree", "forward", "loss", "backward", "update", "logging")
_WAIT, _WARMUP, _ACTIVE = 2, 2, 6  # steps; the first ones are slower than the rest

phase = record_function  # with phase("forward"): ...; costs a microsecond without profiler


@contextlib.contextmanager
def profiled(folder: Path, device: torch.device, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profile some steps: writes a trace for TensorBoard (or chrome://tracing), prints a table of the phases.

    Args:
        folder: the run folder; the trace is a *.pt.trace.json in it.
        device: where the steps run.
        say: prints the table.

    Yields:
        The function to call after each step.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs errors if there is no GPU
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    write = tensorboard_trace_handler(str(folder))

    def report(profiler: Any) -> None:
        write(profiler)
        say(phase_table(profiler.key_averages(), device.type == "cuda"))

    plan = schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=plan, on_trace_ready=report) as profiler:
        yield profiler.step


def phase_table(events: Any, cuda: bool) -> str:
    """Milliseconds per step for each phase, on the CPU and, if any, on the GPU."""
    # Fewer than _ACTIVE if the run ends early.
    steps = max((event.count for event in events if event.key == "data"), default=0)
    if steps == 0:
        return "train.profile: the run ended before the steps to be profiled"
    rows: list[list[Any]] = []
    for name in PHASES:
        # With a GPU there are two events per name: the CPU's, which includes the kernels it launched, and the
        # GPU's, from the first to the last of these, including idle time.
        mine = [event for event in events if event.key == name and event.cpu_time_total > 0]
        if mine:
            host = sum(event.cpu_time_total for event in mine) / 1000 / steps
            gpu = sum(event.device_time_total for event in mine) / 1000 / steps if cuda else 0.0
            rows.append([name, host, gpu])
    if cuda:
        _give_the_rest_to_backward(rows, events, steps)
    total = sum(host for _, host, _ in rows) or 1.0
    lines = [f"profile of {steps} steps    ms/step    share" + ("    on the GPU, ms" if cuda else "")]
    for name, host, gpu in rows:
        lines.append(
            f"{name:18} {host:10.1f} {100 * host / total:7.1f} %" + (f" {gpu:12.1f}" if cuda else "")
        )
    return "\n".join(lines)


def _give_the_rest_to_backward(rows: list[list[Any]], events: Any, steps: int) -> None:
    """Assign the remaining GPU time to backward.

    Autograd launches kernels from its own thread, and the profiler assigns these to no phase.
    """
    kernels = sum(
        event.self_device_time_total
        for event in events
        if event.device_type != DeviceType.CPU and not getattr(event, "is_user_annotation", False)
    )
    others = sum(gpu for name, _, gpu in rows if name != "backward")
    for row in rows:
        if row[0] == "backward":
            row[2] = max(kernels / 1000 / steps - others, 0.0)
