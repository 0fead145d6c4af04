"""A launch of torchrun: what outlives its processes, and so tells a restart from another start."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """One launch, as it is now.

    Args:
        name: of torchrun's --rdzv-id; "none" without.
        agents: the launchers, one for each machine.
        restarted: whether one of them says that it has started its processes anew.
    """

    name: str
    agents: frozenset[str]
    restarted: bool

    @property
    def mark(self) -> str:
        """What `has_made` knows it by."""
        return "\n".join((self.name, *sorted(self.agents)))

    def has_made(self, mark: str) -> bool:
        """Whether the mark is of this launch, before its processes were started anew.

        Agents count their own processes' restarts only, and not those because a machine has come or gone.
        But as long as one agent is left, and others are not, it is the same launch. The name alone may have
        been given twice, and one program may begin several launches.
        """
        name, *agents = mark.splitlines() or [""]
        if self.agents.isdisjoint(agents):
            return self.restarted and name == self.name != "none"
        return self.restarted or self.agents != set(agents)


def launched() -> Launch | None:
    """What this process knows: the agent of its own machine; None where no torchrun started it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None:
        return None
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Launch(name, frozenset([f"agent {_parent()} of {platform.node()}"]), restarts > 0)


def launch_of(processes: Sequence[Launch | None]) -> Launch | None:
    """What they know together."""
    known = [launch for launch in processes if launch is not None]
    if not known:
        return None
    agents = frozenset().union(*(launch.agents for launch in known))
    return Launch(known[0].name, agents, any(launch.restarted for launch in known))


def _parent() -> str:
    """The number of the parent process, and when it was started: numbers come again."""
    number = os.getppid()
    status = Path(f"/proc/{number}/stat")
    if not status.is_file():
        return str(number)
    return f"{number} since {status.read_text().rpartition(')')[2].split()[19]}"
