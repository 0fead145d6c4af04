"""What all programs share, seen from the system."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import doors

FAULTS_OF_TEN_STEPS = """
import resource
import numpy as np
import doors
{call}
def step():
    blocks = [np.ones(size, np.uint8) for size in (200_000, 3_000_000, 50_000_000)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_used_again_and_not_cleared_again() -> None:
    def faults(call: str) -> int:
        words = [sys.executable, "-c", FAULTS_OF_TEN_STEPS.format(call=call)]
        return int(subprocess.check_output(words, cwd=Path(doors.__file__).parent))

    assert faults("doors.keep_freed_memory()") < faults("") / 10
