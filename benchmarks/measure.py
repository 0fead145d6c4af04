"""What the benchmarks share: paired timing, peak memory and reports.

The calls to compare run in turns, so that other load on the machine affects all of them: in one process, or
each in its own process, set up like that of its programs (`Elsewhere`). A ratio is the median over the turns
of the ratio within a turn, not a ratio of two runs.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Call = Callable[[], object]
_LEAST_S = 1.0  # minimum total seconds: fast calls get more turns


@dataclass(frozen=True)
class Timing:
    """The wall-clock seconds of one call, turn by turn."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range, as a fraction of the median; 0 for a single turn."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median_s

    def ratio_to(self, other: "Timing") -> float:
        """How many times longer than `other`, which ran in the same turns."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))

    def __str__(self) -> str:
        """Milliseconds: median and spread."""
        median_ms = self.median_s * 1e3
        if len(self.seconds) < 2:
            return f"{_digits(median_ms)} (once)"
        return f"{_digits(median_ms)} ± {100 * self.spread:.0f} %"


class Elsewhere:
    """Calls in a separate process; a context manager whose exit ends the process.

    The process settings of one side (above all how it keeps memory) do not affect the other. A call waits
    until it is finished there; messaging adds about 0.1 ms.

    Args:
        make: returns the calls by name; must be importable, since the process is spawned.
        arguments: arguments of `make`; must be picklable.
    """

    def __init__(self, make: Callable[..., Mapping[str, Call]], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(far_end, make, arguments), daemon=True)
        self._process.start()
        far_end.close()
        names = self._line.recv()  # EOFError: the process has failed and printed why
        self.calls: dict[str, Call] = {name: partial(self._run, name) for name in names}

    def _run(self, name: str) -> None:
        self._line.send(name)
        self._line.recv()

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *exception: object) -> None:
        self._line.close()
        self._process.join()


def _serve(line: Connection, make: Callable[..., Mapping[str, Call]], arguments: tuple[object, ...]) -> None:
    calls = make(*arguments)
    line.send(list(calls))
    while True:
        try:
            name = line.recv()
        except EOFError:
            return
        calls[name]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        line.send(None)


def in_turns(
    calls: Mapping[str, Call], repeats: int, device: torch.device, warm_up: int = 2
) -> dict[str, Timing]:
    """Time the calls in alternation, at least `repeats` times.

    Every second turn runs in reverse order, so that none is always first.
    """
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    started, turn = time.perf_counter(), 0
    while turn < repeats or time.perf_counter() - started < _LEAST_S:
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(timed(calls[name], device))
        turn += 1
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def timed(call: Call, device: torch.device) -> float:
    """Wall-clock seconds of one call, including its work queued on the device."""
    _synchronise(device)
    started = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - started


def peak_extra_bytes(call: Call, device: torch.device) -> int:
    """Peak memory of the tensors created during the call.

    Tensors that outlive the call (gradients) count, earlier ones do not. On a CPU this is the running sum
    of the allocator's events, which does not include scratch memory of libraries.
    """
    if device.type == "cuda":
        _synchronise(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        _synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences the profiler on stderr
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    held, peak = 0, 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def parser(description: str, repeats: int, device: bool = True) -> argparse.ArgumentParser:
    """An argument parser with the options that benchmarks share. device: add --device."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--repeats", type=int, default=repeats, help="measured turns (%(default)s)")
    if device:
        result.add_argument("--device", default="auto", help="cpu, cuda, or auto: both where there is a GPU")
    result.add_argument("--output", type=Path, metavar="FILE", help="write the report there as well")
    return result


def devices(name: str) -> list[torch.device]:
    """The devices requested by --device."""
    if name == "auto":
        names = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return [torch.device(n) for n in names]
    return [torch.device(name)]


def progress(text: str) -> None:
    """Print a progress line to stderr; the report itself goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A Markdown section: title, table, and a note that explains it."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]
    cells = [
        " | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in (header, *rows)
    ]
    rule = " | ".join("-" * (w - 1) + ":" for w in widths)
    table = "\n".join(f"| {line} |" for line in (cells[0], rule, *cells[1:]))
    return f"## {title}\n\n{table}\n\n{note}\n"


def report(sections: Sequence[str], output: Path | None) -> None:
    """Print the sections under a line with command, date and machine."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    text = "\n".join((f"`{command}`, {date.today().isoformat()}, {_machine()}.\n", *sections))
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _digits(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _machine() -> str:
    simd = torch.backends.cpu.get_cpu_capability()
    parts = [f"{_processor()} ({simd}), {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"PyTorch {torch.__version__}"])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
