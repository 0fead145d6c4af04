"""Run several processes on one machine, each with a share of a batch, for the tests of collectives."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detector.training.processes import Processes, join_processes

Work = Callable[[int, int], Any]  # rank, number of processes -> what torch.save can write


# Imported once by the server that the processes are forked from; each process would take ten seconds.
_IMPORTS = ["torch", "torch.distributed", "torchvision", "albumentations", "detector.training.trainer"]


def run_processes(work: Work, count: int, folder: Path) -> list[Any]:
    """Run `work` in `count` gloo processes; returns the result of each, by rank."""
    multiprocessing.set_forkserver_preload(_IMPORTS)
    arguments = (work, count, str(folder), dict(os.environ))
    mp.start_processes(_enter, args=arguments, nprocs=count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _enter(rank: int, work: Work, count: int, folder: str, environment: dict[str, str]) -> None:
    os.environ |= environment  # the server's is from its start
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    try:
        torch.save(work(rank, count), Path(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def joined() -> Processes:
    """The trainer's view of the group that `run_processes` has made."""
    rank, size = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    return join_processes("cpu")
