"""A request to stop, tested alone: which signals count as one, and which as a second."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from detector.training.stop import SIGNALS, CutShort, StopRequest

ROOT = Path(__file__).resolve().parents[3]


# Each line of its input sets how long signals are one request: no test depends on the machine's speed.
SLEEPER = """
import sys
from detector.training import stop as module
with module.StopRequest(speak=True):
    print("ready", flush=True)
    for line in sys.stdin:
        module._SAME_REQUEST_S = float(line)
        print("set", flush=True)
"""


# When asked to stop, it is in one operation during which other threads can run, but no handler.
BUSY = """
import hashlib, sys, time
from detector.training import stop as module
module._SAME_REQUEST_S = float(sys.argv[2])
with module.StopRequest(speak=True) as stop:
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
    print("done", flush=True)
"""


def sleeper(command: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def one_request_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Makes signals within so many seconds of the first count as one request."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"%f\n" % seconds)
    process.stdin.flush()
    assert process.stdout.readline() == b"set\n"


@pytest.mark.parametrize("reader", ["gone", "asleep"])
def test_a_second_signal_ends_at_once_whoever_reads_what_is_said(reader: str) -> None:
    """The terminal may have closed, or nobody may read a full pipe."""
    fill = """
import os
os.set_blocking(2, False)
try:
    while True:
        os.write(2, bytes(4096))
except BlockingIOError:
    os.set_blocking(2, True)
"""
    command = [sys.executable, "-c", SLEEPER if reader == "gone" else fill + SLEEPER]
    with sleeper(command) as process:
        assert process.stderr is not None
        one_request_for(process, 0.1)
        if reader == "gone":
            process.stderr.close()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.parametrize("second", [False, True])
def test_signals_are_heard_while_the_process_is_busy(second: bool) -> None:
    """A launcher's repetition is recognised however late a handler runs; an impatient user is obeyed."""
    command = [sys.executable, "-c", BUSY, str(10**9 if second else 10**7), "0.1" if second else "60"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"busy\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(timeout=60) == (128 + signal.SIGTERM if second else 0)
        finally:
            process.kill()
        assert process.stdout.read() == (b"" if second else b"done\n")
        assert (b"ended without saving" in process.stderr.read()) == second


def test_a_terminal_that_closes_is_nothing_to_who_ignores_it() -> None:
    """nohup makes a program ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(speak=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_what_a_script_ignores_for_itself_is_a_request_all_the_same(number: int) -> None:
    """`trap '' TERM` lets a batch script outlive its programs, which inherit the setting."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest(speak=False) as stop:
            os.kill(os.getpid(), number)
            assert stop.signal == signal.Signals(number).name
    finally:
        signal.signal(number, before)


def test_a_second_signal_ends_at_once_but_an_echo_does_not() -> None:
    """A launcher repeats a signal that the terminal has sent to all processes."""
    with sleeper([sys.executable, "-c", SLEEPER]) as process:
        assert process.stderr is not None
        one_request_for(process, 60)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        one_request_for(process, 0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        said = process.stderr.read().decode()
    assert "SIGINT: saving the state after this step" in said
    assert "SIGTERM: ended without saving" in said


def test_a_signal_after_the_state_is_saved_does_not_hurry_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher signals all processes that are left when the first of them has ended."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with StopRequest(speak=False) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        stop.served = True
        monkeypatch.setattr("detector.training.stop.time", SimpleNamespace(monotonic=lambda: 1e9))
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == "SIGUSR1"  # all signals have been handled when the block is left
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stop_request_is_false_until_asked_and_gives_the_handlers_back() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest(speak=False) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop and stop.signal == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_a_signal_would_cut_short_is_not_begun_after_one() -> None:
    """No second signal would come to end the wait for a disk that does not answer."""
    reached: list[int] = []
    with StopRequest(speak=False) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(CutShort), stop.cutting_short():
            reached.append(1)
        os.kill(os.getpid(), signal.SIGTERM)  # outside the block nothing is cut short
    assert not reached and stop.signal == "SIGUSR1"


SERVED = """
import atexit, os, signal, sys, time
from detector.training import stop as module
from detector.training.stop import StopRequest
from doors import run_door
from errors import Stopped

def main():
    with StopRequest(speak=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        stop.served = True
    for number in module.SIGNALS:  # while all is brought to an end
        os.kill(os.getpid(), number)
    if sys.argv[1] == "goes on":
        module.time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    raise Stopped("saved")

def late():
    if sys.argv[1] == "ends late":
        time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)

module._TO_END_S = 60.0 if sys.argv[1] == "ends" else 0.2
atexit.register(late)
run_door(main)
"""


@pytest.mark.parametrize(("then", "code"), [("ends", 75), ("ends late", 75), ("goes on", -signal.SIGTERM)])
def test_no_signal_changes_the_exit_code_once_the_state_is_saved(then: str, code: int) -> None:
    """A scheduler looks at the code; but a process that goes on nevertheless can be ended."""
    done = subprocess.run([sys.executable, "-c", SERVED, then], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stderr == (b"" if then == "goes on" else b"saved\n")
