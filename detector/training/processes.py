"""The processes of one training, as started by torchrun, and what they exchange besides gradients.

Exchanges that may take long (an evaluation, the metric on one process while the others wait) use the
key-value store of the launch, which never times out. What happens at every step is one small reduction.
"""

import contextlib
import itertools
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from detector.training.launch import Launch, launch_of, launched
from errors import Bystander, InputError, first_line

log = logging.getLogger(__name__)

Value = TypeVar("Value")
_POLL_S = 0.05
_LAST_BREATH_S = 2.0
_FAREWELL_S = 10.0  # waiting time for late processes; a lost one never comes


class Processes:
    """This process among those of the training; the only one if there is no launcher.

    Every process must make the same calls in the same order.

    Attributes:
        rank: 0 is the main process, the only one that writes and prints.
        size: number of processes.
        local_rank: rank on this machine, which selects the GPU.
        launch: the launch of torchrun; None without torchrun, and in all but the main process.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: dist.Store | None = None):
        self.rank = rank
        self.size = size
        self.local_rank = local_rank
        self._store = store
        self._meetings = itertools.count()
        self.launch: Launch | None = None
        self._launcher = os.getppid() if store is not None and launched() is not None else None

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def orphaned(self) -> bool:
        """Whether torchrun is gone, so that nothing would end this process if another were lost."""
        return self._launcher is not None and os.getppid() != self._launcher

    def is_being_orphaned(self) -> bool:
        """Like `orphaned`, but waits a moment: a dying launcher loses its connections before its children."""
        until = time.monotonic() + _LAST_BREATH_S
        while self._launcher is not None and not self.orphaned and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.orphaned

    def largest(self, value: int) -> int:
        """The maximum over all processes: one small reduction on the CPU."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def refuse_different_steps(self, step: int) -> None:
        """Check that all processes have read a checkpoint of the same step.

        Raises:
            InputError: another process has a checkpoint of another step.
            Bystander: another process failed.
        """
        self.barrier()  # a failed process would leave the others waiting
        lowest, highest = -self.largest(-step), self.largest(step)
        if lowest != highest:
            raise InputError(
                f"process {self.rank} would start at step {step}, but others at another step; put the run "
                "folder on a disk that all machines share"
            )

    def from_main(self, make: Callable[[], Value]) -> Value:
        """The result of `make` in the main process; the others wait for as long as it takes.

        Raises:
            Bystander: another process failed; that one raises its own error.
        """
        if self._store is None:
            return make()
        key = f"from_main/{next(self._meetings)}"
        if not self.main:
            self._wait_for(key)
            done, value = pickle.loads(_asked(self._store.get, key))  # safe: written by this program
            if not done:
                raise Bystander
            return value
        try:
            value = make()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the first error is the one to report
                self._store.set(key, pickle.dumps((False, None)))  # type: ignore[arg-type] # takes bytes
            raise
        _asked(self._store.set, key, pickle.dumps((True, value)))
        return value

    def main_first(self, make: Callable[[], Value]) -> Value:
        """The result of `make` in each process, called in the main process before the others.

        Raises:
            Bystander: the main process failed; that one raises its own error.
        """
        made: list[Value] = []
        self.from_main(lambda: made.append(make()))
        return made[0] if made else make()

    def gather(self, value: Value) -> list[Value] | None:
        """The values of all processes, by rank, in the main process; None elsewhere."""
        if self.size == 1:
            return [value]
        self.barrier()  # all enter the collective together, so that none times out in it
        values: list[Value | None] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values)
        return values  # type: ignore[return-value]

    def announce_failure(self, reason: str) -> bool:
        """Tell the others that this process will not take part in any further exchange.

        Returns:
            Whether another process has announced the same reason before.
        """
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the process that hosts the store may be gone as well
                self._store.set("failed", "1")
                return self._store.add(f"failed/{reason}", 1) > 1
        return False

    def announce_stop(self) -> None:
        """Tell the others, between steps, that this process was asked to stop."""
        if self._store is not None:
            _asked(self._store.set, "stop", "1")

    def stop_announced(self) -> bool:
        """Whether any process has announced a stop."""
        return self._store is not None and _asked(self._store.check, ["stop"])

    def barrier(self, stopping: bool = False) -> bool:
        """Wait for all processes, for as long as it takes; returns whether any of them is stopping.

        Raises:
            Bystander: one has failed and will not come.
        """
        if self._store is None:
            return stopping
        key = f"meeting/{next(self._meetings)}"
        if stopping:
            _asked(self._store.add, f"{key}/stopping", 1)
        if _asked(self._store.add, key, 1) == self.size:
            _asked(self._store.set, f"{key}/all", "1")
        self._wait_for(f"{key}/all")
        return _asked(self._store.add, f"{key}/stopping", 0) > 0

    @contextlib.contextmanager
    def lost_peers_explained(self) -> Iterator[None]:
        """Turn the loss of another process during a collective into one line.

        Raises:
            Bystander: another process or its machine is gone, or it has failed and reports that itself.
        """
        try:
            yield
        except RuntimeError as error:
            if not _tells_of_a_lost_peer(error):
                raise
            with contextlib.suppress(RuntimeError):  # the lost process may have hosted the store
                if self._store is not None and self._store.check(["failed"]):
                    raise Bystander from None
            reason = first_line(error).split("] ", 1)[-1].split(". This is")[0]  # [file] what. advice
            log.error(
                f"the connection to another process is lost ({reason}); --resume continues from the last "
                "checkpoint"
            )
            raise Bystander from None

    def leave(self) -> None:
        """Leave the launch after all work is done.

        The main process goes last: it may host the store, which others still read.
        """
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # all work is done, so lost processes do not matter
                self._store.add("left", 0 if self.main else 1)
                until = time.monotonic() + _FAREWELL_S
                while self.main and self._store.add("left", 0) < self.size - 1 and time.monotonic() < until:
                    time.sleep(_POLL_S)
        if dist.is_initialized():
            dist.destroy_process_group()

    def share_state(self, model: nn.Module) -> None:
        """Copy weights and statistics of the main process to all others, bit for bit."""
        if self.size > 1:
            for tensor in _tensors(model):
                dist.broadcast(tensor, src=0)

    def _wait_for(self, key: str) -> None:
        assert self._store is not None
        while not _asked(self._store.check, [key]):
            # The key may have been set between these two checks, before the failure.
            if _asked(self._store.check, ["failed"]) and not _asked(self._store.check, [key]):
                raise Bystander
            time.sleep(_POLL_S)


def join_processes(device: str) -> Processes:
    """Join the training that torchrun started this process for; a single process without torchrun.

    Args:
        device: the configured device; determines the backend for gradients.

    Raises:
        InputError: the launch cannot be joined, or there are fewer GPUs than processes.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        _warn_of_tasks()
        return Processes()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        if ":" in device:
            raise InputError(
                f"train.device={device} names a single GPU, but torchrun started several processes; set "
                "train.device=cuda"
            )
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {local_rank} of this machine has no GPU ({torch.cuda.device_count()} here); lower "
                "torchrun's --nproc-per-node, or set train.device=cpu"
            )
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
            store = dist.PrefixStore(_attempt(), store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=rank, world_size=size
            )
        except (RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise InputError(
                f"the processes of the training cannot connect to each other ({reason}); start them with "
                "torchrun"
            ) from None
    store = dist.distributed_c10d._get_default_store()
    store = dist.PrefixStore("training", store)
    processes = Processes(dist.get_rank(), dist.get_world_size(), local_rank, store)
    known = processes.gather(launched())
    processes.launch = launch_of(known) if known is not None else None
    return processes


def _warn_of_tasks() -> None:
    """Warn if a scheduler has started several tasks, each of which would train on its own."""
    for tasks in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = os.environ.get(tasks, "1")
        if count != "1":
            log.warning(
                "%s=%s: each of these processes trains separately; start a single torchrun on each machine "
                    "instead",
                tasks, count,
            )  # fmt: skip


def _attempt() -> str:
    """A prefix that separates the store keys of this start from those left by processes before a restart.

    torchrun gives every start the same store, and a stale address in it makes a restart fail. Agents on
    several nodes count restarts independently, so their numbers may differ: these need
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives every start its own store.
    """
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if one_node else 'any'}"


def _tells_of_a_lost_peer(error: RuntimeError) -> bool:
    """Whether gloo or NCCL report a lost process; their other errors are faults of program or machine."""
    words = ("closed by peer", "reset by peer", "Timed out waiting", "remote process exited")
    return dist.is_initialized() and any(word in str(error) for word in words)


def _asked(call: Callable[..., Value], *arguments: Any) -> Value:
    """The store's answer.

    Raises:
        Bystander: the process that hosts the store has failed and left.
    """
    try:
        return call(*arguments)
    except RuntimeError as error:
        log.error(f"the process that coordinates the launch is gone ({first_line(error)})")
        raise Bystander from None


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
