"""Returns and lengths of episodes, gathered from windows that cut through them."""

from typing import Any

import torch
from torch import Tensor

from martes.data import Workspace
from martes.errors import EnvError


class Episodes:
    """Counts what finished episodes earned. The return is undiscounted and summed over the team's agents.

    `limit` is what the task says of its longest episode, if anything.
    """

    def __init__(self, envs: int, device: torch.device | str = "cpu", limit: int | None = None) -> None:
        self._limit = limit
        self._earned = torch.zeros(envs, dtype=torch.float64, device=device)
        self._lived = torch.zeros(envs, dtype=torch.int64, device=device)
        self._finished: dict[str, list[Tensor]] = {}

    def add(self, window: Workspace) -> None:
        """Takes in a window that follows the last one. Raises EnvError where an episode lasts longer than it may."""
        cut = window["cut"].T.contiguous()  # env time
        earned = window["reward"].sum(-1, dtype=torch.float64).T.cumsum(1) + self._earned[:, None]
        lived = torch.arange(1, window.time + 1, device=cut.device) + self._lived[:, None]
        env, t = cut.nonzero(as_tuple=True)  # by environment, then by time
        length = _since_last(lived[env, t], env)
        self.tell({"return": _since_last(earned[env, t], env), "length": length})
        last = torch.where(cut, torch.arange(window.time, device=cut.device), -1).amax(1)
        has_ended = last >= 0
        last = last.clamp(min=0)[:, None]
        self._earned = earned[:, -1] - torch.where(has_ended, earned.gather(1, last)[:, 0], 0)
        self._lived = lived[:, -1] - torch.where(has_ended, lived.gather(1, last)[:, 0], 0)
        self._refuse_late(torch.cat((length, self._lived)), torch.cat((env, torch.arange(len(cut), device=env.device))))

    def _refuse_late(self, lived: Tensor, env: Tensor) -> None:
        if self._limit is not None and bool((lived > self._limit).any()):
            longest = int(lived.argmax())
            raise EnvError(
                f"environment {env[longest]}: an episode has lasted {lived[longest]} steps, but the task says that "
                f"none is longer than {self._limit}. Mend its episode_limit, or cut it there: env.wrap.time_limit"
            )

    def tell(self, stats: dict[str, Tensor]) -> None:
        """Takes in other numbers of episodes that ended, one entry an episode; NaN where an episode tells none."""
        for name, given in stats.items():
            values = given[~given.isnan()]
            if values.numel():
                self._finished.setdefault(name, []).append(values.double())

    def taken(self) -> dict[str, Tensor]:
        """What finished since the last call, one entry an episode, oldest first within each window."""
        finished = {name: torch.cat(values).cpu() for name, values in self._finished.items()}
        self._finished = {}
        return finished

    def state_dict(self) -> dict[str, Any]:
        """The unfinished episodes, and the finished ones that nobody took yet."""
        finished = {name: torch.cat(values) for name, values in self._finished.items()}
        return {"earned": self._earned, "lived": self._lived, "finished": finished}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._earned, self._lived = (state[name].to(self._earned.device) for name in ("earned", "lived"))
        self._finished = {name: [values] for name, values in state["finished"].items()}


def _since_last(total: Tensor, env: Tensor) -> Tensor:
    """Differences of running totals within each environment; its first entry stays."""
    before = torch.zeros_like(total)
    before[1:] = torch.where(env[1:] == env[:-1], total[:-1], 0)
    return total - before
