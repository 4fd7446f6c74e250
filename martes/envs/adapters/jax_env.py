"""Games written in JAX as one VectorEnv: one compiled function a step, tensors shared by DLPack.

A game of yours is a class of pure functions of one copy; this is all of it:

    class Meet:  # two on a line, who win when they meet
        team = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(2)}, {"a": Discrete(3)}, episode_limit=20)

        def reset(self, key):
            place = jax.random.randint(key, (2,), -5, 6)
            return place, {"obs": jnp.stack([place, place[::-1]])}

        def step(self, key, place, action):
            place = place + action - 1  # left, stay, right
            seen = {"obs": jnp.stack([place, place[::-1]])}
            return Outcome(place, seen, reward=place[0] == place[1], over=place[0] == place[1])

    def meet(copies, device):  # --env.factory module:meet
        return JaxEnv(Meet(), copies, device)
"""

import os
from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from martes.data import Continuous, Schema, TeamSpec, TimeStep
from martes.envs.single import counted, limited
from martes.errors import EnvError, require

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the memory of torch's device


@runtime_checkable
class Array(Protocol):
    """A JAX array, as far as it is looked at here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """What it holds."""
        ...


SHARES = 8
"""New episodes are drawn for one of so many shares of the copies at a time, until all that were cut have theirs."""

Seen = Mapping[str, object]
"""`obs` or `obs/<part>` and, where the team has them, `state`, `action_mask`; `agent_mask` only if agents die or join.
Each is an array [agent ...] or, where the agents' are of unequal sizes, a mapping of agents to arrays."""


class Outcome(NamedTuple):
    """What a joint action led to, in one copy."""

    state: object
    seen: Seen
    reward: object
    """[agent], a mapping of agents to numbers, or the team's one number."""
    over: Array | bool = False
    """Does the game itself end here? All then have terminated; a time limit is none of its business."""
    discount: object = 1
    """[agent]: 0 where an agent terminates while others play on."""
    stats: Mapping[str, object] = {}
    """What the game counts of an episode (`battle_won`); read where it is cut."""


@runtime_checkable
class JaxGame(Protocol):
    """The rules of a game as pure functions of one copy, which `jax.vmap` takes to many."""

    team: TeamSpec
    """The facts of the task; `episode_limit` steps cut an episode."""

    def reset(self, key: Array) -> tuple[object, Seen]:
        """A fresh state, any tree of arrays, and what is seen of it."""
        ...

    def step(self, key: Array, state: object, action: Array) -> Outcome:
        """The result of `action`: int32 [agent], or [agent choice], or float32 [agent dimension]."""
        ...


@runtime_checkable
class Drawn(Protocol):
    """A game that can show itself."""

    def frame(self, state: object) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of one copy's state."""
        ...


class JaxEnv:
    """`copies` of a game as one VectorEnv. Episodes end when the game is over or at the team's `episode_limit`.

    Two compiled functions do it all: a step, and new episodes. The second is called only when some copy was cut, and
    draws episodes for few more copies than those; so an ordinary step copies nothing for the sake of `final`.
    The tensors of a TimeStep are JAX's own arrays, which nobody may write to: later steps make new ones. JAX runs on
    `device`, or on the CPU, and copies, where it has no such device.
    """

    def __init__(
        self, game: JaxGame, copies: int, device: torch.device | str = "cpu", limit: int | None = None
    ) -> None:
        self.game = game
        self.team = limited(game.team, limit)
        self.num_envs, self.device = counted(copies), torch.device(device)
        self._schema = Schema.from_team(self.team)
        self._action_shape = self._schema.shape("action", 1, copies)[1:]  # time env agent ... -> env agent ...
        self._jax = require("jax", "jax")
        self._place = _place(self._jax, self.device)
        self._advance, self._renew = self._jax.jit(self._advanced), self._jax.jit(self._renewed)
        self._blank = self._jax.jit(self._blanked)
        self._running: dict[str, object] = {}
        self._seen: dict[str, object] = {}

    def reset(self, seed: int) -> TimeStep:
        """The first step of every copy; equal seeds give equal futures."""
        running, seen = self._blank()
        running["key"] = self._jax.random.PRNGKey(seed % 2**32)
        cut = np.ones(self.num_envs, bool)  # as if all copies had just been cut: that compiles the renewal now
        self._running, self._seen = self._renew(*self._jax.device_put((running, seen, cut), self._place))
        return self._shown()

    def step(self, action: Tensor) -> TimeStep:
        """The result of `action` [env agent ...] in every copy; copies that were cut open their next episode."""
        self._refuse_unopened("step()")
        if action.shape != self._action_shape:
            raise EnvError(f"actions have the shape {list(action.shape)}, this task takes {list(self._action_shape)}")
        self._running, self._seen, ended = self._advance(self._running, self._given(action))
        reward, discount, cut = (self._tensor(ended[name]) for name in ("reward", "discount", "cut"))
        final, stats = None, {}
        if cut.any():
            final, stats = self._tensors(self._seen), self._tensors(ended["stats"])
            self._running, self._seen = self._renew(self._running, self._seen, ended["cut"])
        return TimeStep(self._tensors(self._seen), cut, reward, discount, cut, final, stats)

    def _shown(self) -> TimeStep:
        """The step that the next action is chosen from, outside of a run of steps."""
        seen = self._tensors(self._seen)
        start = self._tensor(self._running["elapsed"]) == 0
        zeros = torch.zeros(self.num_envs, self.team.size, device=self.device)
        return TimeStep(seen, start, zeros, torch.ones_like(zeros), torch.zeros_like(start))

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """A picture of copy `index` as it stands. Raises EnvError where there is none: no such copy, or none drawn."""
        if index not in range(self.num_envs):  # JAX would take the nearest
            raise EnvError(f"there is no copy {index}: copies go from 0 to {self.num_envs - 1}")
        if not isinstance(self.game, Drawn):
            raise EnvError(f"{type(self.game).__name__} has no picture of itself: give it frame(state)")
        self._refuse_unopened("render()")
        return self.game.frame(self._jax.tree.map(lambda leaf: leaf[index], self._running["state"]))

    def close(self) -> None:
        """Forgets the state."""
        self._running, self._seen = {}, {}

    def state_dict(self) -> dict[str, object]:
        """States, clocks, random state and what is seen: the future is a function of these and of the actions."""
        self._refuse_unopened("state_dict()")
        return {"leaves": {name: _saved(leaf) for name, leaf in self._named((self._running, self._seen)).items()}}

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from.

        Raises EnvError where it is no such state, or that of another game, of other options or of other copies.
        """
        saved = state.get("leaves")
        if not isinstance(saved, Mapping):
            raise EnvError("this is not the state of a JAX environment: `leaves` is missing")
        whole = self._jax.eval_shape(self._blank)
        expected = self._named(whole)
        blank = {name: _saved(np.empty(like.shape, like.dtype)) for name, like in expected.items()}
        for name in blank | dict(saved):
            ours, theirs = _described(blank.get(name)), _described(saved.get(name))
            if ours != theirs:
                raise EnvError(
                    f"{name} is {theirs} in the saved state and {ours} here: that is the state of another game, of "
                    f"other options or of another number of copies than {self.num_envs}"
                )
        arrays = [saved[name].cpu().numpy().copy().view(like.dtype) for name, like in expected.items()]
        leaves = self._jax.device_put(arrays, self._place)
        self._running, self._seen = self._jax.tree.unflatten(self._jax.tree.structure(whole), leaves)
        return self._shown()

    def _refuse_unopened(self, asked: str) -> None:
        if not self._running:
            raise EnvError(f"{asked} before reset(): call reset(seed) first")

    def _named(self, tree: object) -> dict[str, Array]:
        leaves = self._jax.tree_util.tree_leaves_with_path(tree)
        return {self._jax.tree_util.keystr(path): leaf for path, leaf in leaves}

    def _given(self, action: Tensor) -> Array:
        """The action as an array of its own: the tensor may be written over, and a view may lie askew."""
        kind = torch.float32 if self.team.action_kind is Continuous else torch.int32
        host = "cpu" if self._place.platform == "cpu" else action.device
        fresh = torch.empty(self._action_shape, dtype=kind, device=host).copy_(action.detach())
        if fresh.is_cpu:
            return fresh.numpy()  # taken as it is by compiled functions, with less ado than any JAX array made of it
        return self._jax.device_put(self._jax.numpy.from_dlpack(fresh), self._place)

    def _tensor(self, array: object) -> Tensor:
        return torch.from_dlpack(array).to(self.device)

    def _tensors(self, arrays: object) -> dict[str, Tensor]:
        assert isinstance(arrays, Mapping)
        return {name: self._tensor(array) for name, array in arrays.items()}

    # What follows is traced by JAX, once. All copies:

    def _blanked(self) -> tuple[dict[str, object], Seen]:
        """Zeros in the place of all that is kept from step to step."""
        jax = self._jax

        def whole(key: Array) -> tuple[dict[str, object], Seen]:
            state, seen = jax.vmap(self._opened)(jax.random.split(key, self.num_envs))
            return {"key": key, "state": state, "elapsed": jax.numpy.zeros(self.num_envs, "int32")}, seen

        likes = jax.eval_shape(whole, jax.random.PRNGKey(0))
        return jax.tree.map(lambda like: jax.lax.full(like.shape, 0, like.dtype), likes)

    def _advanced(self, running: dict[str, object], action: Array) -> tuple[dict[str, object], Seen, object]:
        """All copies after a step; those that were cut have not been opened anew yet."""
        key, now = self._jax.random.split(running["key"])
        given = self._jax.random.split(now, self.num_envs), running["state"], running["elapsed"], action
        state, elapsed, seen, ended = self._jax.vmap(self._moved)(*given)
        return {"key": key, "state": state, "elapsed": elapsed}, seen, ended

    def _renewed(self, running: dict[str, object], seen: Seen, cut: Array) -> tuple[dict[str, object], Seen]:
        """All copies, those that were cut at the first step of their next episode."""
        jax, jnp = self._jax, self._jax.numpy
        key, now = jax.random.split(running["key"])
        keys, few, count = jax.random.split(now, self.num_envs), -(-self.num_envs // SHARES), jnp.sum(cut)
        where = jnp.nonzero(cut, size=SHARES * few, fill_value=self.num_envs)[0]  # beyond the last: of no copy

        def renewed(done: Array, old: object) -> tuple[Array, object]:
            rows = jax.lax.dynamic_slice(where, (done,), (few,))
            new = jax.vmap(self._opened)(keys.at[rows].get(mode="clip"))
            return jnp.add(done, few), jax.tree.map(lambda all_, some: all_.at[rows].set(some, mode="drop"), old, new)

        begun = jnp.zeros_like(count), (running["state"], seen)
        _, (state, seen) = jax.lax.while_loop(lambda at: at[0] < count, lambda at: renewed(*at), begun)
        return {**running, "key": key, "state": state}, seen

    # One copy:

    def _opened(self, key: Array) -> tuple[object, Seen]:
        state, seen = self.game.reset(key)
        return _strong(self._jax, state), self._fields(seen)

    def _moved(self, key: Array, state: object, elapsed: Array, action: Array) -> tuple[object, Array, Seen, object]:
        jax, jnp = self._jax, self._jax.numpy
        outcome, elapsed = self.game.step(key, state, action), jnp.add(elapsed, 1)
        over = jnp.asarray(outcome.over, bool)
        cut = over if self.team.episode_limit is None else over | jnp.greater_equal(elapsed, self.team.episode_limit)
        ended = {
            "reward": self._field("reward", outcome.reward),
            "discount": self._field("discount", outcome.discount) * ~over,
            "cut": cut,
            "stats": {name: jnp.asarray(value, "float32") for name, value in outcome.stats.items()},
        }
        return _strong(jax, outcome.state), jnp.where(cut, 0, elapsed), self._fields(outcome.seen), ended

    def _fields(self, seen: Seen) -> Seen:
        """What is seen of a copy, as the schema has it; the absent see zeros."""
        jnp = self._jax.numpy
        expected = {name for name, field in self._schema.items() if field.extra_row and name != "start"}
        if {"agent_mask", *seen} != expected:
            game = type(self.game).__name__
            raise EnvError(f"{game} shows {sorted(seen)}, its team declares {sorted(expected)}: make them equal")
        fields = {name: self._field(name, value) for name, value in {"agent_mask": True, **seen}.items()}
        for name in self.team.parts:
            there = jnp.expand_dims(fields["agent_mask"], tuple(range(1, len(fields[name].shape))))
            fields[name] = jnp.where(there, fields[name], jnp.zeros_like(fields[name]))
        return fields

    def _field(self, name: str, value: object) -> Array:
        """A field of a copy, as the schema has it; a number of the team is each agent's."""
        jnp = self._jax.numpy
        shape = self._schema.shape(name, 1, 1)[2:]  # time env ... -> ...
        if isinstance(value, Mapping):
            value = self._stacked(name, value, shape[1:])
        array = jnp.asarray(value, str(self._schema[name].dtype).removeprefix("torch."))
        if array.ndim == 0 and shape == (self.team.size,):
            return jnp.broadcast_to(array, shape)
        if array.shape != shape:
            raise EnvError(
                f"{type(self.game).__name__} gives {name} of shape {list(array.shape)}, its team declares "
                f"{list(shape)}: make them equal"
            )
        return array

    def _stacked(self, name: str, values: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
        """What is given by agent, padded at the end of each axis to `shape` and stacked."""
        missing = [agent for agent in self.team.agents if agent not in values]
        if missing:
            raise EnvError(f"{type(self.game).__name__} gives no {name} for agent {missing[0]!r}: name every agent")
        jnp = self._jax.numpy
        rows = [jnp.asarray(values[agent]) for agent in self.team.agents]
        return jnp.stack([jnp.pad(row, _missing(shape, row.shape)) if shape else row for row in rows])


def _missing(shape: tuple[int, ...], given: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0, max(0, size - each)) for size, each in zip(shape, given, strict=True)]


@runtime_checkable
class _Place(Protocol):
    """A device, as JAX has it."""

    platform: str


def _place(jax: ModuleType, device: torch.device) -> _Place:
    """JAX's name of `device`; its CPU where it has no such device."""
    try:
        return jax.devices(device.type)[device.index or 0]
    except RuntimeError:
        return jax.devices("cpu")[0]


def _strong(jax: ModuleType, tree: object) -> object:
    """The tree without weak types, which a first step would lose and so compile the second one anew."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jax.numpy.result_type(leaf)), tree)


def _signed(dtype: np.dtype) -> np.dtype:
    """What a leaf is saved as: not every reader of tensors knows unsigned numbers of more than a byte."""
    return np.dtype(f"i{dtype.itemsize}") if dtype.kind == "u" and dtype.itemsize > 1 else dtype


def _saved(leaf: object) -> Tensor:
    array = np.array(leaf)
    return torch.from_numpy(array.view(_signed(array.dtype)))


def _described(leaf: object) -> str:
    return f"{list(leaf.shape)} of {leaf.dtype}" if isinstance(leaf, Tensor) else "missing"
