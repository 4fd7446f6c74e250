"""VMAS: teams in a plane with physics, on batched tensors (Bettini et al. 2022). It is GPLv3: imported, never copied.

It neither resets itself nor has random numbers of its own: both are given to it here.
"""

import inspect
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from martes.data import Continuous, Discrete, TimeStep
from martes.envs.adapters.seats import team_of
from martes.envs.adapters.vmas_simulation import Chance, Held, Simulation, begun, observed_in, plain, reopened
from martes.errors import ConfigError, EnvError, nearest, require


def vmas(
    task: str,
    copies: int,
    device: torch.device | str = "cpu",
    limit: int | None = None,
    continuous: bool = True,
    multi_discrete: bool = False,
    **options: object,
) -> "VmasEnv":
    """`copies` of a scenario of VMAS, stepped together on `device`.

    Raises ConfigError for a scenario or an option of it that does not exist, and for values that it refuses.

    Args:
        task: The scenario: `balance`, `transport`, `simple_spread`...
        copies: Copies that are stepped together.
        device: Where they are.
        limit: Cut episodes after so many steps; most scenarios have no end of their own.
        continuous: Real-valued forces (and messages); otherwise choices.
        multi_discrete: Without `continuous`: a choice for each direction and message, not one for all of them?
        **options: Options of the scenario, as `n_agents`.
    """
    package = require("vmas", "vmas")
    known = (*package.scenarios, *package.debug_scenarios, *package.mpe_scenarios)
    if task not in known:
        raise ConfigError(f"no task {task!r} of vmas{nearest(task, known)}")
    if continuous and multi_discrete:
        raise ConfigError(f"vmas:{task}: multi_discrete is for choices: set continuous=False beside it")
    shared = require("vmas.simulator.environment", "vmas").Environment.vmas_random_state
    kept, shared[:] = list(shared), begun(0)  # what a scenario draws when it is made is the same in every process
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Scenario kwargs")
            simulation = package.make_env(
                task,
                copies,
                device=device,
                continuous_actions=continuous,
                multidiscrete_actions=multi_discrete,
                max_steps=limit,
                terminated_truncated=True,
                **options,
            )
    except (UserWarning, AssertionError, TypeError, ValueError, IndexError, RuntimeError) as error:
        refuse_unknown_options(task, Path(inspect.getfile(package)).parent, options)
        raise ConfigError(f"vmas:{task} cannot be made with {options}: {type(error).__name__}: {error}") from error
    finally:
        shared[:] = kept
    return VmasEnv(simulation, f"vmas:{task}")


def refuse_unknown_options(task: str, package: Path, options: Iterable[str]) -> None:
    """Raises ConfigError, with the nearest name, for an option that the scenario's source does not read."""
    (source,) = (path for path in package.glob("scenarios/**/*.py") if path.stem == task)
    known = set(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)", source.read_text()))
    for name in options:
        if name not in known:
            raise ConfigError(f"vmas:{task} has no option {name!r}{nearest(name, known)}")


class VmasEnv:
    """A simulation of VMAS as a VectorEnv.

    A scenario that ends ends for everybody: all discounts are 0 there. `stats` are the scenario's own numbers at an
    episode's last step, the mean over its agents. Observations of several parts are one vector.
    """

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.name = name
        self.num_envs = simulation.num_envs
        self.device = simulation.device
        self._simulation = simulation
        self._made = Held(simulation)
        self._chance = Chance(self.device)
        with self._chance.drawn():
            seen = _vectors(observed_in(simulation))
        agents = [agent.name.replace(" ", "_") for agent in simulation.agents]
        acts = [_space(simulation.get_agent_action_space(agent)) for agent in simulation.agents]
        sees = [spaces.Box(-np.inf, np.inf, (vector.shape[1],), np.float32) for vector in seen]
        self.team = team_of(
            dict(zip(agents, sees, strict=True)),
            dict(zip(agents, acts, strict=True)),
            episode_limit=simulation.max_steps,
        )
        self._bounds = [each.to(self.device) for each in self.team.bounds] if self._is_continuous else []
        choices = self.team.legal_actions.shape[1:2]
        self._action_shape = (self.num_envs, self.team.size, *(() if self.team.action_kind is Discrete else choices))
        self._there = torch.ones(self.num_envs, self.team.size, dtype=torch.bool, device=self.device)
        self._has_begun = False

    @property
    def _is_continuous(self) -> bool:
        return self.team.action_kind is Continuous

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures."""
        self._chance.begin(int(np.random.SeedSequence(seed).generate_state(1)[0]) >> 1)
        self._made.restore()
        with self._chance.drawn():
            seen = self._seen(plain(self._simulation.reset)())
        self._has_begun = True
        start, ones = self._there.all(1), self._there.float()
        return TimeStep(seen, start, torch.zeros_like(ones), ones, ~start)

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy; copies that ended open their next episode.

        Raises EnvError for actions of another shape, and for what the simulation refuses.
        """
        if not self._has_begun:
            raise EnvError("step() before reset(): call reset(seed) first")
        if action.shape != self._action_shape:
            raise EnvError(f"actions have the shape {list(action.shape)}, this task takes {list(self._action_shape)}")
        try:
            with self._chance.drawn():
                return self._stepped(self._by_agent(action))
        except AssertionError as error:
            raise EnvError(f"{self.name}: {str(error) or 'an action is not a number'}") from error

    def _by_agent(self, action: Tensor) -> list[Tensor]:
        if self.team.action_kind is Discrete:
            return list(action.unsqueeze(-1).unbind(1))
        if self._is_continuous:
            action = action.clamp(*self._bounds)  # a bound that is met to rounding alone would be refused
        return [each[:, : len(sizes)] for each, sizes in zip(action.unbind(1), self.team.action_sizes, strict=True)]

    def _stepped(self, actions: list[Tensor]) -> TimeStep:
        observed, rewards, terminated, truncated, infos = plain(self._simulation.step)(actions)
        seen, cut = self._seen(observed), terminated | truncated
        reward = torch.stack([each.reshape(-1) for each in rewards], 1).float()
        discount = (~terminated).float().unsqueeze(1).repeat(1, self.team.size)
        ended = int(cut.count_nonzero())
        if not ended:
            return TimeStep(seen, cut, reward, discount, cut)
        fresh = self._seen(reopened(self._simulation, cut))
        opened = {**fresh, "obs": torch.where(cut[:, None, None], fresh["obs"], seen["obs"])}
        return TimeStep(opened, cut, reward, discount, cut, seen, _stats(infos, self.num_envs))

    def _seen(self, observed: list[object]) -> dict[str, Tensor]:
        vectors = _vectors(observed)
        widths = [vector.shape[1] for vector in vectors]
        if min(widths) < max(widths):
            vectors = [functional.pad(each, (0, max(widths) - each.shape[1])) for each in vectors]
        return {"obs": torch.stack(vectors, 1), "agent_mask": self._there}

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """VMAS's own picture of copy `index`. Raises EnvError where there is nothing to draw with."""
        try:
            with self._chance.drawn():
                picture = plain(self._simulation.render)(mode="rgb_array", env_index=index)
        except Exception as error:  # each driver fails in its own way
            raise EnvError(
                f"{self.name} cannot be drawn here ({type(error).__name__}: {error}): VMAS draws by OpenGL. Install "
                "libegl1 and libgl1, or start the command by `xvfb-run -a`"
            ) from error
        return np.ascontiguousarray(picture)

    def close(self) -> None:
        """Closes the window that pictures were drawn in."""
        close = getattr(self._simulation.viewer, "close", None)
        if close is not None:
            close()
            self._simulation.viewer = None

    def state_dict(self) -> dict[str, object]:
        """Raises NotImplementedError: scenarios keep their state wherever they like."""
        raise NotImplementedError("a scenario of VMAS cannot tell its state")

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Raises NotImplementedError, as `state_dict` does."""
        raise NotImplementedError("a scenario of VMAS cannot tell its state")


def _space(space: object) -> spaces.Space:
    """Gym's space as Gymnasium's."""
    match vars(space):
        case {"low": low, "high": high}:
            return spaces.Box(low, high, dtype=np.float32)
        case {"nvec": choices}:
            return spaces.MultiDiscrete(choices)
        case facts:
            return spaces.Discrete(int(facts["n"]))


def _vectors(observed: Sequence[object]) -> list[Tensor]:
    """What each agent sees [env feature]."""
    return [each.float() if isinstance(each, Tensor) else torch.cat(list(_leaves(each)), -1) for each in observed]


def _leaves(observed: object) -> Iterable[Tensor]:
    if isinstance(observed, Tensor):
        yield observed.reshape(len(observed), -1).float()
    elif isinstance(observed, Mapping):
        for part in observed.values():
            yield from _leaves(part)


def _stats(infos: Sequence[Mapping[str, Tensor]], copies: int) -> dict[str, Tensor]:
    """Each number that a scenario tells of its agents, their mean."""
    names = dict.fromkeys(name for info in infos for name, value in info.items() if value.numel() == copies)
    told = {name: [info[name].reshape(-1).float() for info in infos if name in info] for name in names}
    return {name: torch.stack(values).mean(0) for name, values in told.items()}
