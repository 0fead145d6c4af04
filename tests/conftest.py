"""Tests run in parallel: one thread each, and a fixed order of float additions."""

import os

import pytest
import torch

# Read when Triton is first imported, and inherited by processes that tests start.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # after they have been shuffled
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups take longest: if started last, one of them would run while the other processes are idle."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
