"""Tests run side by side: one thread each, and a fixed order of float additions."""

import os
import shutil
from pathlib import Path

import pytest
import torch

# A hundred training runs write checkpoints of 180 MB and wait for the disk: in memory, where there is plenty,
# the whole suite takes two thirds of the time.
_MEMORY = Path("/dev/shm")
if _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > 12 << 30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(_MEMORY))

# Read when Triton is first imported, and inherited by what the tests start.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # after they have been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups take longest: begun last, one of them would run on while the other processes idle."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
