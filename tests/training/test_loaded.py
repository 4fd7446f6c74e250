"""A loaded policy acts as the one that was trained, whatever form observations come in."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from martes.algorithms.ppo import PPO
from martes.data import Schema, TeamSpec, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import DataError
from martes.networks import Chain, Network, TemporalModule, act
from martes.training.loaded import LoadedPolicy
from tests.worlds import World

ENVS, STEPS = 3, 25
WORLDS = {
    "discrete, masks, deaths": World(has_masks=True, has_deaths=True, is_unequal=True),
    "multi-discrete, masks": World("multi", has_masks=True, is_unequal=True),
    "continuous": World("continuous", is_unequal=True, has_deaths=True),
    "parts": World(has_image=True, is_unequal=True),
    "forced": World(has_forced=True, has_masks=True),
    "forced, continuous": World("continuous", has_forced=True),
}


def policy_of(world: World, memory: str = "gru") -> TemporalModule:
    network = replace(Network(hidden=(8,), memory_size=6, channels=(4,)), memory=memory)
    generator = torch.Generator().manual_seed(0)
    policy = PPO(critic="local", network=network, sharing="group").learner(world.team, generator).policy
    for parameter in policy.parameters():  # heads begin near 0: their choices would hardly depend on what is seen
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return policy


def played(world: World, policy: TemporalModule) -> Workspace:
    """A record of the policy at play, greedy."""
    env = BatchedEnv(world, ENVS)
    actor = policy.part_for("action")
    workspace = Workspace(Schema.from_team(env.team).extended(**actor.fields()), time=STEPS, envs=ENVS)
    first = env.reset(0)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = actor.initial_memory(ENVS)
    act(Chain(env, actor), workspace, 0, STEPS)
    return workspace


def whole(workspace: Workspace, t: int, env: int | None, as_numpy: bool) -> dict[str, object]:
    """The arguments of `act`, arrays over the team, at step t of one environment or all."""
    names = [name for name in workspace.names if name == "obs" or name.startswith("obs/")]
    seen = {name: workspace[name][t] for name in [*names, "agent_mask", "start"]}
    if "action_mask" in workspace:
        seen["action_mask"] = workspace["action_mask"][t]
    if env is not None:
        seen = {name: value[env] for name, value in seen.items()}
    seen = {name: value.numpy() for name, value in seen.items()} if as_numpy else seen
    parts = {name: seen.pop(name) for name in names}
    return {"obs": parts["obs"] if names == ["obs"] else parts, **seen}


def by_name(team: TeamSpec, workspace: Workspace, t: int, env: int) -> dict[str, object]:
    """The same as dicts by agent name: who is there alone, each array as wide as the agent's own space."""
    obs, masks = {}, {}
    for index, name in enumerate(team.agents):
        if workspace["agent_mask"][t, env, index]:
            width = team.observation_sizes[index]
            if "obs" in workspace:
                obs[name] = workspace["obs"][t, env, index, :width].numpy()
            else:
                vector, camera = (workspace[f"obs/{part}"][t, env, index].numpy() for part in ("vector", "camera"))
                obs[name] = {"vector": vector[:width], "camera": camera}
            if "action_mask" in workspace:
                mask = workspace["action_mask"][t, env, index].numpy()
                sizes = team.action_sizes[index]
                masks[name] = mask[: sizes[0]] if mask.ndim == 1 else mask[: len(sizes), : max(sizes)]
    start = bool(workspace["start"][t, env])
    return {"obs": obs, "start": start, **({"action_mask": masks} if masks else {})}


@pytest.mark.parametrize("as_numpy", [True, False])
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_arrays_of_many_environments(world, as_numpy):
    policy = policy_of(world)
    record, loaded = played(world, policy), LoadedPolicy(policy, world.team)
    assert record["start"][1:].any()
    assert not world.has_forced or (record.mask & ~record.decided).any()
    for t in range(STEPS):
        action = loaded.act(**whole(record, t, None, as_numpy))
        assert isinstance(action, np.ndarray if as_numpy else torch.Tensor)
        expected = record["action"][t]
        decides = record.decided[t]  # what an environment forced upon an agent is not its policy's choice
        torch.testing.assert_close(torch.as_tensor(action)[decides], expected[decides], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_one_environment_as_arrays_and_by_agent_name(world):
    policy = policy_of(world)
    record = played(world, policy)
    loaded, named = LoadedPolicy(policy, world.team), LoadedPolicy(policy, world.team)
    for t in range(STEPS):
        expected = record["action"][t, 1]
        there, decides = record["agent_mask"][t, 1], record.decided[t, 1]
        action = loaded.act(**whole(record, t, 1, as_numpy=True))
        torch.testing.assert_close(torch.as_tensor(action)[decides], expected[decides], rtol=1e-5, atol=1e-5)
        if not there.any():
            continue
        actions = named.act(**by_name(world.team, record, t, 1))
        assert list(actions) == [name for name, here in zip(world.team.agents, there, strict=True) if here]
        for name, own in actions.items():
            index = world.team.agents.index(name)
            wanted = expected[index] if expected.ndim == 1 else expected[index, : len(world.team.action_sizes[index])]
            if decides[index]:
                np.testing.assert_allclose(own, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_a_dict_by_name_gives_plain_numbers():
    loaded = LoadedPolicy(policy_of(World()), World().team)
    action = loaded.act({"big_1": np.zeros(6), "big_0": np.zeros(6)})
    assert list(action) == ["big_1", "big_0"]
    assert isinstance(action["big_0"], np.integer)


def test_memory_goes_from_call_to_call_and_reset_forgets_it():
    loaded = LoadedPolicy(policy_of(World("continuous")), World("continuous").team)
    obs = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    first, second = loaded.act(obs), loaded.act(obs)
    assert not torch.equal(first, second)
    assert torch.equal(loaded.act(obs, start=torch.tensor([True, True])), first)
    loaded.reset()
    assert torch.equal(loaded.act(obs), first)
    assert torch.equal(loaded.act(obs[:, :]), second)
    with pytest.raises(DataError, match=r"2 environments before, 1 now: call reset\(\)"):
        loaded.act(obs[0])


def test_without_memory_the_number_of_environments_may_change():
    loaded = LoadedPolicy(policy_of(World(), memory="none"), World().team)
    obs = torch.randn(2, 3, 6)
    assert torch.equal(loaded.act(obs)[0], loaded.act(obs[0]))


def test_draws_follow_the_seed(global_randomness_unused):
    world = World()
    obs = torch.zeros(50, 3, 6)
    drawn = [LoadedPolicy(policy_of(world), world.team, seed).act(obs, greedy=False) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    greedy = LoadedPolicy(policy_of(world), world.team).act(obs)
    assert len({tuple(row.tolist()) for row in greedy}) == 1


@pytest.mark.parametrize(
    ("world", "arguments", "told"),
    [
        (World(), {"obs": np.zeros((3, 5))}, r"obs has shape \[3, 5\], .* \[3, 6\], or \[environments, 3, 6\]"),
        (World(), {"obs": np.zeros((2, 2, 3, 6))}, r"obs has shape \[2, 2, 3, 6\]"),
        (World(), {"obs": np.zeros(6)}, r"obs has shape \[6\]"),
        (World(), {"obs": {"big_0": np.zeros(5)}}, r"obs of big_0 has shape \[5\], this policy takes \[6\]"),
        (World(), {"obs": {"bigg_0": np.zeros(6)}}, "no field or agent is called 'bigg_0'; did you mean 'big_0'"),
        (World(), {"obs": {"big_0": np.zeros(6), "bigg_1": np.zeros(6)}}, "bigg_1|big_0"),
        (World(), {"obs": {}}, "an observation of nobody"),
        (World(), {"obs": "what"}, "obs is no array of numbers"),
        (World(), {"obs": {"big_0": np.zeros(6), "big_1": np.zeros((2, 6))}}, r"obs of big_1 holds \[2\] environments"),
        (World(), {"obs": np.zeros((3, 6)), "action_mask": np.ones((3, 3))}, "leave action_mask out"),
        (World(), {"obs": np.zeros((3, 6)), "agent_mask": [True, False]}, r"agent_mask does not fit \[3\]"),
        (World(), {"obs": np.zeros((2, 3, 6)), "start": [True] * 3}, r"start does not fit \[2\]"),
        (World(has_masks=True), {"obs": np.zeros((3, 6))}, "give act"),
        (World(has_masks=True), {"obs": np.zeros((3, 6)), "action_mask": np.ones((3, 4))}, "action_mask does not fit"),
        (World(has_image=True), {"obs": np.zeros((3, 6))}, "no field"),
        (World(has_image=True), {"obs": {"obs/vector": np.zeros((3, 6))}}, "field 'obs/camera' is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(world, arguments, told):
    with pytest.raises(DataError, match=told):
        LoadedPolicy(policy_of(world), world.team).act(**arguments)
