"""The processes of one training, as torchrun starts them, and what they tell each other beside gradients.

What may take long (an evaluation, the metric on one process while the others wait) goes over the key
store of the launch, which never times out. What happens at every step is one small reduction.
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
_FAREWELL_S = 10.0  # for those that are late; one that was lost will not come


class Processes:
    """This process among those of the training; the only one where there is no launcher.

    Every process must make the same calls in the same order.

    Attributes:
        rank: 0 is the main process, which alone writes and speaks.
        size: how many there are.
        local_rank: among those of this machine, which says its GPU.
        launch: that of torchrun; None without, and beside the main process.
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
        """Whether torchrun has gone: nobody would end this process if another were lost."""
        return self._launcher is not None and os.getppid() != self._launcher

    def is_being_orphaned(self) -> bool:
        """`orphaned` within a moment: a launcher that ends loses its connections before its children."""
        until = time.monotonic() + _LAST_BREATH_S
        while self._launcher is not None and not self.orphaned and time.monotonic() < until:
            time.sleep(_POLL_S)
        return self.orphaned

    def largest(self, value: int) -> int:
        """The largest of the processes' values: one small reduction on the CPU."""
        if self.size == 1:
            return value
        values = torch.tensor([value])
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def refuse_different_steps(self, step: int) -> None:
        """Of the checkpoint that each process has read by itself.

        Raises:
            InputError: it is of another step in another process.
            Bystander: another process failed.
        """
        self.barrier()  # one that failed would leave the others waiting
        lowest, highest = -self.largest(-step), self.largest(step)
        if lowest != highest:
            raise InputError(
                f"process {self.rank} would start at step {step}, but others at another step; put the run "
                "folder on a disk that all machines share"
            )

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What the main process makes while the others wait, for as long as it takes.

        Raises:
            Bystander: another process failed; there its own error is raised.
        """
        if self._store is None:
            return make()
        key = f"from_main/{next(self._meetings)}"
        if not self.main:
            self._wait_for(key)
            done, value = pickle.loads(_asked(self._store.get, key))  # our own bytes
            if not done:
                raise Bystander
            return value
        try:
            value = make()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what has failed here is what is to be told
                self._store.set(key, pickle.dumps((False, None)))  # type: ignore[arg-type] # takes bytes
            raise
        _asked(self._store.set, key, pickle.dumps((True, value)))
        return value

    def main_first(self, make: Callable[[], Value]) -> Value:
        """What each process makes for itself, the main one before the others.

        Raises:
            Bystander: the main process failed; there its own error is raised.
        """
        made: list[Value] = []
        self.from_main(lambda: made.append(make()))
        return made[0] if made else make()

    def gather(self, value: Value) -> list[Value] | None:
        """The values of all, in order of rank, at the main process; None elsewhere."""
        if self.size == 1:
            return [value]
        self.barrier()  # the collective is entered by all at once, so that none waits in it
        values: list[Value | None] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values)
        return values  # type: ignore[return-value]

    def announce_failure(self, reason: str) -> bool:
        """Let the others know that this process will come to no further meeting.

        Returns whether one of them has announced the same reason before.
        """
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # whoever kept the store has gone as well
                self._store.set("failed", "1")
                return self._store.add(f"failed/{reason}", 1) > 1
        return False

    def announce_stop(self) -> None:
        """Let the others know, between steps, that this process was asked to stop."""
        if self._store is not None:
            _asked(self._store.set, "stop", "1")

    def stop_announced(self) -> bool:
        """Whether any process has announced it."""
        return self._store is not None and _asked(self._store.check, ["stop"])

    def barrier(self, stopping: bool = False) -> bool:
        """Wait, for as long as it takes, until all have come here; whether any came because it is stopping.

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
        """One line where another process is lost in the middle of what all do together.

        Raises:
            Bystander: it, or its machine, is gone, or it has failed and says why itself.
        """
        try:
            yield
        except RuntimeError as error:
            if not _tells_of_a_lost_peer(error):
                raise
            with contextlib.suppress(RuntimeError):  # whoever kept the store may be the one
                if self._store is not None and self._store.check(["failed"]):
                    raise Bystander from None
            reason = first_line(error).split("] ", 1)[-1].split(". This is")[0]  # [file] what. advice
            log.error(
                f"the connection to another process is lost ({reason}); --resume continues from the last "
                "checkpoint"
            )
            raise Bystander from None

    def leave(self) -> None:
        """End the membership of the launch, all having come to the end.

        The main process goes last: it may keep the store, where others still look for what it said.
        """
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # all has been done, whoever is lost now
                self._store.add("left", 0 if self.main else 1)
                until = time.monotonic() + _FAREWELL_S
                while self.main and self._store.add("left", 0) < self.size - 1 and time.monotonic() < until:
                    time.sleep(_POLL_S)
        if dist.is_initialized():
            dist.destroy_process_group()

    def share_state(self, model: nn.Module) -> None:
        """Give all processes the main one's weights and statistics, to the bit."""
        if self.size > 1:
            for tensor in _tensors(model):
                dist.broadcast(tensor, src=0)

    def _wait_for(self, key: str) -> None:
        assert self._store is not None
        while not _asked(self._store.check, [key]):
            # What the others wait for may have come between the two looks, and the failure after it.
            if _asked(self._store.check, ["failed"]) and not _asked(self._store.check, [key]):
                raise Bystander
            time.sleep(_POLL_S)


def join_processes(device: str) -> Processes:
    """Join the training that torchrun started this process for; alone if nothing did.

    Args:
        device: the configured device; decides how gradients travel.

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
    """Of a scheduler's tasks each would train by itself, into a run of its own."""
    for tasks in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        count = os.environ.get(tasks, "1")
        if count != "1":
            log.warning(
                "%s=%s: each of these processes trains separately; start a single torchrun on each machine "
                    "instead",
                tasks, count,
            )  # fmt: skip


def _attempt() -> str:
    """What sets the keys of this start apart from those that processes before a restart have left.

    torchrun hands every start the same store; a stale address in it lets a restart fail. Agents of
    several nodes count restarts each for themselves, so that their numbers may differ: these want
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, with which every start has a store of its own.
    """
    one_node = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') if one_node else 'any'}"


def _tells_of_a_lost_peer(error: RuntimeError) -> bool:
    """By gloo, or by NCCL: other errors of theirs are faults of the program or of the machine."""
    words = ("closed by peer", "reset by peer", "Timed out waiting", "remote process exited")
    return dist.is_initialized() and any(word in str(error) for word in words)


def _asked(call: Callable[..., Value], *arguments: Any) -> Value:
    """What the store says; whoever kept it may have failed and left.

    Raises:
        Bystander: it has.
    """
    try:
        return call(*arguments)
    except RuntimeError as error:
        log.error(f"the process that coordinates the launch is gone ({first_line(error)})")
        raise Bystander from None


def _tensors(model: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
