"""JaxMARL (Rutherford et al., 2024): SMAX, Hanabi, Overcooked, particles, coins, switches and MaBrax, under `JaxEnv`.

The suite says `done` of what ended and of what ran out of time alike. Here an episode is terminal only where the game
itself ended; the suite's own limit, which each family counts in its own way, is the team's `episode_limit`:

- SMAX: over when either side is dead; cut after `max_steps` + 1 steps (the suite compares the step before).
- Hanabi: over when the fireworks are complete, the lives or the deck's last round spent; no limit.
- Overcooked: never over; cut after `max_steps`.
- MPE: never over; cut after `max_steps` + 1.
- Coin game: never over; cut after `num_inner_steps` x `num_outer_steps`.
- Switch riddle: over when somebody tells; cut after 4 agents - 6 steps.
- MaBrax: over when the body fell; cut after `episode_length` / `action_repeat`.
"""

import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from operator import attrgetter
from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from martes.conversion import refuse_unknown
from martes.data import Action, Continuous, Discrete, Image, TeamSpec, Vector, VectorEnv
from martes.envs.adapters.jax_env import Array, JaxEnv, Outcome, Seen
from martes.envs.adapters.jax_pictures import Picture, arena, battle, kitchen, kitchen_v2
from martes.errors import ConfigError, EnvError, nearest, require

ByAgent = Mapping[str, Array]
"""The suite's name of an agent -> what is its own."""


def jaxmarl(
    task: str, copies: int, device: str | torch.device = "cpu", limit: int | None = None, **options: object
) -> VectorEnv:
    """`copies` of a task of JaxMARL under the suite's own name, such as `MPE_simple_spread_v3`.

    Raises ConfigError for a task or an option that the suite does not have.

    Args:
        task: the name in the suite's registry.
        limit: steps after which an episode is cut, if the task does not cut it before.
        options: what the task's constructor takes.
    """
    if task not in FAMILIES:
        raise ConfigError(f"no task {task!r} of jaxmarl{nearest(task, FAMILIES)}")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it tells the news
        warnings.simplefilter("ignore", DeprecationWarning)
        suite = require("jaxmarl.environments", "jax")
        try:
            game = FAMILIES[task](suite, task, dict(options))
        except (TypeError, ValueError, AssertionError) as error:
            told = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "its defaults"
            raise ConfigError(f"{task} of JaxMARL cannot be made with {told}: {error}") from error
    return JaxEnv(game, copies, device, limit)


def smax(
    copies: int,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    map: str = "3m",
    **options: object,
) -> VectorEnv:
    """`copies` of SMAX against the suite's scripted enemy; the dead are absent while the others fight on.

    It counts `battle_won`.

    Args:
        map: 3m, 2s3z, 3s5z, 5m_vs_6m, 8m, 27m_vs_30m, smacv2_5_units and others; `map_name` is the same.
        limit: steps after which an episode is cut, if the task does not cut it before.
        options: what HeuristicEnemySMAX and SMAX take: `attack_mode`, `see_enemy_actions`, `max_steps` and others.
    """
    return jaxmarl("HeuristicEnemySMAX", copies, device, limit, **{"map_name": map, **options})


def overcooked(
    copies: int,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    layout: str = "cramped_room",
    shaped_reward: float = 0.0,
    **options: object,
) -> VectorEnv:
    """`copies` of Overcooked (Carroll et al., 2019), which sees 26 planes of real numbers.

    Args:
        layout: cramped_room, asymm_advantages, coord_ring, forced_coord or counter_circuit.
        shaped_reward: this much of the suite's own shaped rewards is added to the reward of 20 for a soup delivered:
            3 for an onion in a pot, 3 for a plate picked up when one is needed, 5 for a soup picked up.
        limit: steps after which an episode is cut, if the task does not cut it before.
        options: what Overcooked takes: `max_steps`, `random_reset`.
    """
    return jaxmarl("overcooked", copies, device, limit, layout=layout, shaped_reward=shaped_reward, **options)


@runtime_checkable
class SuiteEnv(Protocol):
    """A task as the suite has it."""

    agents: list[str]

    def action_space(self, agent: str) -> object:
        """What an agent does."""
        ...

    def reset(self, key: Array) -> tuple[ByAgent, object]:
        """What is seen first, and the state."""
        ...

    def step_env(
        self, key: Array, state: object, actions: ByAgent
    ) -> tuple[ByAgent, object, ByAgent, ByAgent, Mapping[str, ByAgent]]:
        """What is seen, the state, rewards, dones and what else is told; nothing is reset."""
        ...


class Rules(NamedTuple):
    """What sets one family apart from the others."""

    limit: int | None = None
    """Steps after which the suite cuts an episode though nothing ended in the game."""
    over: Callable[[object, Array, object, Array], Array | bool] = lambda before, action, after, done: False
    """Did the game itself end? Of the state before, the actions [agent ...], the state after and the suite's done."""
    fields: Callable[[object, ByAgent], Seen] = lambda state, seen: {}
    """`state`, `action_mask` and `agent_mask`, of the state and of the observations."""
    stats: Callable[[object], Mapping[str, object]] = lambda state: {}
    """What is counted of an episode."""
    shaped: float = 0.0
    """How much of the shaped reward, which the suite tells beside the reward, is added to it."""
    frame: Callable[[object], Picture] | None = None
    """Draws a state."""


class SuiteGame:
    """A task of the suite as a JaxGame; `env` is the suite's own object."""

    def __init__(self, env: SuiteEnv, rules: Rules) -> None:
        self._env = env
        self._rules = rules
        jax = require("jax", "jax")
        self._jnp = jax.numpy
        self._names = {agent: f"agent_{agent}" if agent.isdigit() else agent for agent in env.agents}
        _, shown = jax.eval_shape(self.reset, jax.random.PRNGKey(0))
        sees = {name: _observed(each.shape) for name, each in shown["obs"].items()}
        does = {name: _acted(env.action_space(agent)) for agent, name in self._names.items()}
        self.team = TeamSpec.of_agents(
            sees,
            does,
            _groups(sees, does),
            state=Vector(shown["state"].size) if "state" in shown else None,
            episode_limit=rules.limit,
            masks_actions="action_mask" in shown,
        )

    def reset(self, key: Array) -> tuple[object, Seen]:
        """A fresh state, and what is seen of it."""
        seen, state = self._env.reset(key)
        return state, self._shown(seen, state)

    def step(self, key: Array, state: object, action: Array) -> Outcome:
        """The result of `action` [agent ...], by the suite's own step, which resets nothing."""
        seen, after, reward, done, told = self._env.step_env(key, state, self._given(action))
        paid = self._by_name(reward)
        if self._rules.shaped:
            extra, jnp = self._by_name(told["shaped_reward"]), self._jnp
            paid = {name: jnp.add(paid[name], jnp.multiply(extra[name], self._rules.shaped)) for name in paid}
        over = self._rules.over(state, action, after, done["__all__"])
        return Outcome(after, self._shown(seen, after), paid, over, stats=self._rules.stats(after))

    def frame(self, state: object) -> Picture:
        """A picture by the suite's own viewer. Raises EnvError where it has none, or one of text."""
        if self._rules.frame is None:
            raise EnvError(f"JaxMARL draws no picture of {type(self._env).__name__}: play it without pictures")
        return self._rules.frame(state)

    def _shown(self, seen: ByAgent, state: object) -> Seen:
        written = {agent: _written(seen[agent]) for agent in self._names}
        return {"obs": self._by_name(written)} | {
            name: self._by_name(value) if isinstance(value, Mapping) else value
            for name, value in self._rules.fields(state, written).items()
        }

    def _by_name(self, values: ByAgent) -> dict[str, Array]:
        return {name: values[agent] for agent, name in self._names.items()}

    def _given(self, action: Array) -> dict[str, Array]:
        """The suite's joint action, each agent's without its padding."""
        rows = self._jnp.asarray(action)
        sizes = zip(self._names, self.team.action_sizes, strict=True)
        one = self.team.action_kind is Discrete
        return {agent: rows[i] if one else rows[i, : len(size)] for i, (agent, size) in enumerate(sizes)}


def _observed(shape: tuple[int, ...]) -> Vector | Image:
    """Planes of a grid are a picture of real numbers; all else is a vector."""
    return Image((shape[0], shape[1], shape[2]), torch.float32) if len(shape) == 3 else Vector(*shape)


def _written(seen: Array) -> Array:
    """Planes with channels first, or a vector."""
    jnp = require("jax.numpy", "jax")
    return jnp.moveaxis(seen, -1, 0) if len(seen.shape) == 3 else jnp.reshape(seen, -1)


@runtime_checkable
class _Choices(Protocol):
    n: int


@runtime_checkable
class _Box(Protocol):
    low: object
    high: object
    shape: tuple[int, ...]


def _acted(space: object) -> Action:
    if isinstance(space, _Choices):
        return Discrete(int(space.n))
    assert isinstance(space, _Box)
    low, high = (np.broadcast_to(np.asarray(bound, dtype=float), space.shape) for bound in (space.low, space.high))
    return Continuous(tuple(low.tolist()), tuple(high.tolist()))


def _groups(sees: Mapping[str, Vector | Image], does: Mapping[str, Action]) -> dict[str, tuple[int, ...]]:
    """Agents of one name up to the underscore and of equal spaces; where a name has several kinds, each is a group."""
    members: dict[tuple[str, Vector | Image, Action], list[int]] = {}
    for index, agent in enumerate(sees):
        members.setdefault((agent.rpartition("_")[0] or agent, sees[agent], does[agent]), []).append(index)
    names, agents = [name for name, *_ in members], list(sees)
    return {name if names.count(name) == 1 else agents[who[0]]: tuple(who) for (name, *_), who in members.items()}


# The families. Each makes the game of a task from its options.


def _known(options: Mapping[str, object], *kinds: type) -> Mapping[str, object]:
    """The options. Raises ConfigError for one that neither a class nor those that it hands its own to know."""
    bases = [base for kind in kinds for base in kind.__mro__ if base is not object]
    known = {name: each for base in bases for name, each in inspect.signature(base).parameters.items()}
    refuse_unknown("env", options, [name for name, each in known.items() if each.kind is not each.VAR_KEYWORD])
    return options


def _smax(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    maps = require("jaxmarl.environments.smax.smax_env", "jax").MAP_NAME_TO_SCENARIO
    name = options.pop("map_name", "3m")
    if name not in maps:
        raise ConfigError(f"SMAX has no map {name!r}{nearest(str(name), maps)}")
    env = suite.HeuristicEnemySMAX(scenario=maps[name], **_known(options, suite.HeuristicEnemySMAX, suite.SMAX))
    alive = attrgetter("state.unit_alive")
    ours, theirs = slice(env.num_allies), slice(env.num_allies, None)

    def over(before: object, action: Array, after: object, done: Array) -> Array:
        return ~alive(after)[ours].any() | ~alive(after)[theirs].any()

    def fields(state: object, seen: ByAgent) -> Seen:
        masks = {"action_mask": env.get_avail_actions(state), "agent_mask": alive(state)[ours]}
        return {"state": env.get_world_state(state), **masks}

    def stats(state: object) -> dict[str, object]:
        return {"battle_won": alive(state)[ours].any() & ~alive(state)[theirs].any()}

    def frame(state: object) -> Picture:
        return battle(env.init_render, env.all_agents, attrgetter("state")(state))

    return SuiteGame(env, Rules(env.max_steps + 1, over, fields, stats, frame=frame))


def _hanabi(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    ranks = int(str(options.get("num_ranks", 5)))
    copies = options.get("num_cards_of_rank") or [3, *[2] * (ranks - 2), 1]  # the box's: three ones, one of the highest
    env = suite.Hanabi(**{**_known(options, suite.Hanabi), "num_cards_of_rank": np.asarray(copies)})
    return SuiteGame(
        env,
        Rules(
            over=lambda before, action, after, done: done,
            fields=lambda state, seen: {"action_mask": env.get_legal_moves(state)},
            stats=lambda state: {"score": attrgetter("score")(state)},
        ),
    )


def _overcooked(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    shaped, name = float(str(options.pop("shaped_reward", 0))), options.pop("layout", "cramped_room")
    layouts = suite.overcooked_layouts if task == "overcooked" else suite.overcooked_v2_layouts
    if name not in layouts:
        raise ConfigError(f"{task} has no layout {name!r}{nearest(str(name), layouts)}")
    kind, frame = (suite.Overcooked, kitchen) if task == "overcooked" else (suite.OvercookedV2, kitchen_v2)
    env = kind(layout=layouts[name], **_known(options, kind))

    def fields(state: object, seen: ByAgent) -> Seen:
        return {"state": require("jax.numpy", "jax").ravel(seen[env.agents[0]])}  # a cook sees all of the kitchen

    rules = Rules(env.max_steps, shaped=shaped, frame=frame)
    return SuiteGame(env, rules._replace(fields=fields) if task == "overcooked" else rules)


def _particles(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    kind = getattr(suite, f"{_PARTICLES[task]}MPE")
    env = kind(**_known(options, kind))
    return SuiteGame(env, Rules(env.max_steps + 1, frame=lambda state: arena(env, state)))


def _coins(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    env = suite.CoinGame(**_known(options, suite.CoinGame))
    return SuiteGame(env, Rules(env.num_inner_steps * env.num_outer_steps))


def _riddle(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    env = suite.SwitchRiddle(**_known(options, suite.SwitchRiddle))

    def over(before: object, action: Array, after: object, done: Array) -> Array:
        jnp = require("jax.numpy", "jax")
        return jnp.take(action, attrgetter("agent_in_room")(before)) == env.game_actions["TELL"]

    return SuiteGame(env, Rules(env.max_steps, over))


def _mabrax(suite: ModuleType, task: str, options: dict[str, object]) -> SuiteGame:
    require("brax", "mabrax")
    env = getattr(suite, _BODIES[task])(auto_reset=False, **options)  # its own reset would hide the last observation

    def over(before: object, action: Array, after: object, done: Array) -> Array:
        fell, info = attrgetter("done", "info")(after)
        return fell * (1 - info["truncation"]) > 0

    steps = -(-env.episode_length // env.action_repeat)
    return SuiteGame(env, Rules(steps, over, lambda state, seen: {"state": attrgetter("obs")(state)}))


_PARTICLES = {
    "MPE_simple_v3": "Simple",
    "MPE_simple_tag_v3": "SimpleTag",
    "MPE_simple_world_comm_v3": "SimpleWorldComm",
    "MPE_simple_spread_v3": "SimpleSpread",
    "MPE_simple_crypto_v3": "SimpleCrypto",
    "MPE_simple_speaker_listener_v4": "SimpleSpeakerListener",
    "MPE_simple_push_v3": "SimplePush",
    "MPE_simple_adversary_v3": "SimpleAdversary",
    "MPE_simple_reference_v3": "SimpleReference",
}
_BODIES = {
    "ant_4x2": "Ant",
    "halfcheetah_6x1": "HalfCheetah",
    "hopper_3x1": "Hopper",
    "humanoid_9|8": "Humanoid",
    "walker2d_2x3": "Walker2d",
}
FAMILIES: Mapping[str, Callable[[ModuleType, str, dict[str, object]], SuiteGame]] = {
    "HeuristicEnemySMAX": _smax,
    "hanabi": _hanabi,
    "overcooked": _overcooked,
    "overcooked_v2": _overcooked,
    "coin_game": _coins,
    "switch_riddle": _riddle,
    **dict.fromkeys(_PARTICLES, _particles),
    **dict.fromkeys(_BODIES, _mabrax),
}
"""The suite's name of a task -> what makes it."""
