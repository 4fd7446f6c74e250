"""The border: tasks in worker processes against the same in series, and native suites against their own loops.

Both sides of a native suite play the same task with as many copies, draw legal actions on the way, open the next
episode of copies that ended, and wait for each step's results, since a learner reads them before it acts again. Both
have compiled when they come to be timed: a first call that compiled would pass for a long enough piece of work, and
what would be timed then is a single step, in caches that the other side has just filled. SMAX is told its map on both
sides (JaxMARL's default has five units a side). VMAS resets single copies, and is asked for observations once.
"""

from collections.abc import Callable, Mapping
from types import ModuleType

import torch

from martes.bench.timing import Measurement, Side, rates, ratios
from martes.data import VectorEnv
from martes.envs.catalogue import environment
from martes.envs.pace import drawn_actions
from martes.envs.settings import Environment
from martes.errors import MissingExtra, require

COPIES = 1024
"""Copies of a native suite."""


def process(repeats: int) -> list[Measurement]:
    """Env-steps of 64 copies of a task in plain Python, in two worker processes, to those in series."""
    name = "mpe2-spread, 64 copies in 2 processes vs in series"
    try:
        require("mpe2", "mpe")
    except MissingExtra as error:
        return [Measurement(name, (), 1.5, note=str(error))]
    envs = {each: environment(Environment("mpe2-spread", 64, workers=each)) for each in (0, 2)}
    found = rates({str(each): stepped(env) for each, env in envs.items()}, repeats)
    for env in envs.values():
        env.close()
    return [Measurement(name, ratios(found["2"], found["0"]), 1.5)]


def native(repeats: int) -> list[Measurement]:
    """Env-steps of native suites through the border, to those of the suite's own loop, resets and drawing included."""
    results: list[Measurement] = []
    for name, own in OWN.items():
        label = f"{name}, {COPIES} copies vs the suite's own loop"
        try:
            sides = {"own": own(), "ours": stepped(environment(Environment(name), COPIES))}
        except MissingExtra as error:
            results.append(Measurement(label, (), 0.7, note=str(error)))
            continue
        found = rates(sides, repeats)
        results.append(Measurement(label, ratios(found["ours"], found["own"]), 0.7))
    return results


def stepped(env: VectorEnv) -> Side:
    """Steps under legal actions drawn on the way; warm."""
    generator = torch.Generator().manual_seed(0)
    last = env.reset(0)

    def steps(count: int) -> int:
        nonlocal last
        for _ in range(count):
            last = env.step(drawn_actions(env.team, last, generator))
        return count * env.num_envs

    steps(2)
    return steps


def _jaxmarl(task: str, **options: object) -> Side:
    """JaxMARL's own step, which resets by itself, mapped over the copies and compiled; actions are drawn inside."""
    jax = require("jax", "jax")
    env = require("jaxmarl", "jax").make(task, **options)
    masks = getattr(env, "get_legal_moves", None) or (env.get_avail_actions if "SMAX" in task else None)

    def drawn(key: object, state: object) -> dict[str, object]:
        keys = jax.random.split(key, len(env.agents))
        if masks is None:
            return {agent: env.action_space(agent).sample(each) for agent, each in zip(env.agents, keys, strict=True)}
        legal = masks(state)
        scores = {agent: jax.numpy.where(legal[agent] > 0, 0.0, -1e9) for agent in env.agents}
        return {a: jax.random.categorical(each, scores[a]) for a, each in zip(env.agents, keys, strict=True)}

    def one(key: object, state: object) -> tuple[object, object]:
        choosing, stepping = jax.random.split(key)
        seen, after, reward, done, _ = env.step(stepping, state, drawn(choosing, state))
        return after, (seen, reward, done)

    _, state = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), COPIES))
    return _looped(jax, one, state)


def _smax(name: str) -> Side:
    return _jaxmarl(
        "HeuristicEnemySMAX", scenario=require("jaxmarl.environments.smax", "jax").map_name_to_scenario(name)
    )


def _jumanji(task: str) -> Side:
    """Jumanji's own step in its wrapper that resets, mapped over the copies and compiled; actions drawn inside."""
    jax, suite = require("jax", "jax"), require("jumanji", "jax")
    env = require("jumanji.wrappers", "jax").AutoResetWrapper(suite.make(task))

    def one(key: object, carried: tuple[object, object]) -> tuple[object, object]:
        state, mask = carried
        action = jax.random.categorical(key, jax.numpy.where(mask, 0.0, -1e9))
        after, shown = env.step(state, action)
        return (after, shown.observation.action_mask), shown

    state, shown = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(0), COPIES))
    return _looped(jax, one, (state, shown.observation.action_mask))


def _looped(jax: ModuleType, one: Callable[..., tuple[object, object]], carried: object) -> Side:
    """One compiled call a step; its results are waited for, as a learner that reads them would."""
    lax, random = jax.lax, jax.random

    def step(key: object, state: object) -> tuple[object, object, object]:
        key, now = random.split(key)
        state, told = jax.vmap(one)(random.split(now, COPIES), state)
        return key, jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), state), told

    compiled, key = jax.jit(step), random.PRNGKey(1)
    for _ in range(2):  # some suites compile twice
        key, carried, _ = compiled(key, carried)

    def steps(count: int) -> int:
        nonlocal key, carried
        for _ in range(count):
            key, carried, told = compiled(key, carried)
            jax.block_until_ready(told)
        return count * COPIES

    return steps


def _vmas(task: str) -> Side:
    """VMAS' own step; copies that are done are reset one by one, the only way of the package, and then looked at."""
    env = require("vmas", "vmas").make_env(task, COPIES, continuous_actions=True, seed=0)

    def steps(count: int) -> int:
        for _ in range(count):
            done = env.step([env.get_random_action(agent) for agent in env.agents])[2]
            ended = done.nonzero().squeeze(1).tolist()
            for index in ended:
                env.reset_at(index, return_observations=False)
            if ended:
                env.get_from_scenario(get_observations=True, get_rewards=False, get_infos=False, get_dones=False)
        return count * COPIES

    return steps


OWN: Mapping[str, Callable[[], Side]] = {
    "smax-3m": lambda: _smax("3m"),
    "jaxmarl:MPE_simple_spread_v3": lambda: _jaxmarl("MPE_simple_spread_v3"),
    "overcooked-cramped-room": lambda: _jaxmarl("overcooked"),
    "jaxmarl:hanabi": lambda: _jaxmarl("hanabi"),
    "jumanji:LevelBasedForaging-v0": lambda: _jumanji("LevelBasedForaging-v0"),
    "vmas:balance": lambda: _vmas("balance"),
    "vmas:simple_spread": lambda: _vmas("simple_spread"),
}
"""Task -> the suite's own loop."""
