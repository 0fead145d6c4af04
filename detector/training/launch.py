"""A launch of torchrun: what survives its processes, to tell a restart from another launch."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """The state of one launch.

    Args:
        name: torchrun's --rdzv-id; "none" if not given.
        agents: the launchers, one per machine.
        restarted: whether any of them reports that it has restarted its processes.
    """

    name: str
    agents: frozenset[str]
    restarted: bool

    @property
    def mark(self) -> str:
        """The text that identifies the launch for `has_made`."""
        return "\n".join((self.name, *sorted(self.agents)))

    def has_made(self, mark: str) -> bool:
        """Whether the mark is of this launch, before its processes were restarted.

        Agents count only restarts after failures of their own processes, not those because a machine has
        joined or left. But as long as one agent stays and others change, it is the same launch. The name
        alone may have been used twice, and one program may start several launches.
        """
        name, *agents = mark.splitlines() or [""]
        if self.agents.isdisjoint(agents):
            return self.restarted and name == self.name != "none"
        return self.restarted or self.agents != set(agents)


def launched() -> Launch | None:
    """The launch as this process sees it, with the agent of its own machine; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Launch(name, frozenset([f"agent {_parent()} of {platform.node()}"]), restarts > 0)


def launch_of(processes: Sequence[Launch | None]) -> Launch | None:
    """The launch as all processes together see it; None without torchrun."""
    known = [launch for launch in processes if launch is not None]
    if not known:
        return None
    agents = frozenset().union(*(launch.agents for launch in known))
    return Launch(known[0].name, agents, any(launch.restarted for launch in known))


def _parent() -> str:
    """Process id and start time of the parent; ids are reused."""
    number = os.getppid()
    status = Path(f"/proc/{number}/stat")
    if not status.is_file():
        return str(number)
    return f"{number} since {status.read_text().rpartition(')')[2].split()[19]}"
