"""Where the time of a step goes: named phases, and torch's profiler over some steps on request."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function, schedule, tensorboard_trace_handler

PHASES = ("data", "forward", "loss", "backward", "update", "logging")
_WAIT, _WARMUP, _ACTIVE = 2, 2, 6  # steps: the first ones are slower than all others

phase = record_function  # with phase("forward"): ...; costs a microsecond where nobody looks


@contextlib.contextmanager
def profiled(folder: Path, device: torch.device, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Profile some steps: a trace for TensorBoard (or chrome://tracing) and a table of the phases.

    Args:
        folder: of the run; the trace is a *.pt.trace.json in it.
        device: where the steps run.
        say: prints the table.

    Yields:
        what to call after each step.
    """
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
    """Milliseconds per step of each phase, as the CPU sees them and, on a GPU, as that does."""
    by_name = {event.key: event for event in events if event.key in PHASES}
    rows = []
    for name in PHASES:
        if name in by_name:
            host = by_name[name].cpu_time_total / 1000 / _ACTIVE
            rows.append((name, host, by_name[name].device_time_total / 1000 / _ACTIVE if cuda else 0.0))
    total = sum(host for _, host, _ in rows) or 1.0
    lines = [f"profile of {_ACTIVE} steps    ms/step    share" + ("    on the GPU, ms" if cuda else "")]
    for name, host, gpu in rows:
        lines.append(
            f"{name:18} {host:10.1f} {100 * host / total:7.1f} %" + (f" {gpu:12.1f}" if cuda else "")
        )
    return "\n".join(lines)
