"""Deterministic policies: boxes, noise and its memory, choices, codes of actions, two faces."""

from dataclasses import replace
from math import exp

import pytest
import torch
from torch import Tensor

from martes.data import Discrete, Schema, TeamSpec, Vector, Workspace
from martes.data.trees import cleared
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.networks import Network, act
from martes.networks.deterministic import ActionNoise, DeterministicPolicy
from martes.networks.temporal import Chain, TemporalModule
from tests.worlds import WORLDS, World

SMALL = Network(hidden=(8,))
OU = ActionNoise("ou", start=0.2, end=0.2, theta=0.3)


def made(team: TeamSpec, noise: ActionNoise = OU, gain: float = 1.0, network: Network = SMALL) -> DeterministicPolicy:
    policy = DeterministicPolicy(team, network, "group", noise, torch.Generator().manual_seed(0))
    with torch.no_grad():
        policy.head.weight.mul_(gain)
    return policy


def seen(world: World, envs: int) -> dict[str, Tensor]:
    return BatchedEnv(world, envs).reset(0).seen


def in_box(policy: DeterministicPolicy, action: Tensor) -> Tensor:
    """Actions in halves of their range, from the middle of the box."""
    return policy.codes.of_actions(action)


# ---------------------------------------------------------------------------------------------------- what it does
def test_actions_reach_both_ends_of_every_box_and_leave_none() -> None:
    world = World("continuous", is_unequal=True)
    policy, inputs = made(world.team, gain=1e5), seen(world, 200)
    action = policy.step(inputs, policy.initial_memory(200))[0]["action"]
    low, high = world.team.bounds
    real = world.team.legal_actions
    assert ((action >= low) & (action <= high)).all()
    assert torch.equal(action.amin(0)[real], low[real]) and torch.equal(action.amax(0)[real], high[real])
    middle = made(world.team, gain=0.0).step(inputs, policy.initial_memory(200))[0]["action"]
    assert torch.allclose(middle, ((low + high) / 2).expand_as(middle))


@pytest.mark.parametrize("name", ["unequal", "multi-discrete-masked", "continuous", "forced", "forced-continuous"])
def test_codes_of_what_is_done_are_codes_of_the_scores_it_is_done_by(name: str) -> None:
    world = WORLDS[name]
    policy, inputs = made(world.team, gain=100.0), seen(world, 20)
    outputs, _ = policy.step(inputs, policy.initial_memory(20))
    done, meant = policy.codes.of_actions(outputs["action"]), policy.codes.of_scores(outputs["scores"], inputs)
    assert torch.allclose(done, meant, atol=1e-5)
    legal = world.team.legal_actions.flatten(1)
    assert (done.masked_select(~legal) == 0).all()
    if world.kind != "continuous":
        subs = world.team.legal_actions.any(-1).sum(-1) if world.kind == "multi" else torch.ones(world.agents)
        assert torch.equal(done.sum(-1), subs.expand(20, -1).float()), "one-hot for each choice that there is"
        if world.has_masks:
            mask = inputs["action_mask"].flatten(2)
            mask = mask | inputs["forced"].unsqueeze(-1) if "forced" in inputs else mask
            assert not (done.bool() & ~mask).any()


def test_evaluation_repeats_and_takes_the_highest_legal_score() -> None:
    world = WORLDS["unequal"]
    policy, inputs = made(world.team, gain=100.0), seen(world, 30)
    actions = [policy.step(inputs, ())[0]["action"] for _ in range(5)]
    assert all(torch.equal(actions[0], each) for each in actions)
    scores = policy.step(inputs, ())[0]["scores"]
    mask = inputs["action_mask"] & world.team.legal_actions
    assert torch.equal(actions[0], scores.masked_fill(~mask, -torch.inf).argmax(-1))


# ------------------------------------------------------------------------------------------------------------- noise
def explored(policy: DeterministicPolicy, steps: int, envs: int = 4000, start: Tensor | None = None) -> Tensor:
    """What noise adds over some steps, in halves of the range [step env agent dimension]."""
    generator, memory = torch.Generator().manual_seed(3), policy.initial_memory(envs)
    inputs = {"obs": torch.zeros(envs, 2, 6), "agent_mask": torch.ones(envs, 2, dtype=torch.bool)}
    found: list[Tensor] = []
    for step in range(steps):
        if start is not None and step == steps - 1:
            memory = cleared(memory, policy.initial_memory(envs), start)
        outputs, memory = policy.step({**inputs, **policy.noise(envs, generator)}, memory)
        found.append(in_box(policy, outputs["action"]))
    return torch.stack(found)


TWO = World("continuous", agents=2)


@pytest.mark.parametrize("kind", ["gaussian", "ou"])
def test_noise_is_as_large_as_it_says_at_every_step_and_apart_for_everyone(kind: str) -> None:
    noise = explored(made(TWO.team, replace(OU, kind=kind), gain=0.0), 26)  # pyright: ignore
    for step in (0, 1, 5, 25):
        assert noise[step].std().item() == pytest.approx(0.2, rel=0.05)
    after = torch.corrcoef(torch.stack((noise[20].flatten(), noise[23].flatten())))[0, 1].item()
    assert after == pytest.approx(exp(-0.3 * 3) if kind == "ou" else 0, abs=0.03)
    others = torch.corrcoef(noise[20].flatten(1).t()).fill_diagonal_(0)
    assert others.abs().max() < 0.08, "agents and dimensions share no noise"
    halves = torch.corrcoef(torch.stack((noise[20, :2000].flatten(), noise[20, 2000:].flatten())))[0, 1]
    assert halves.abs() < 0.08, "environments share no noise"


def test_drifting_noise_begins_anew_where_an_episode_does_and_nowhere_else() -> None:
    policy = made(TWO.team, gain=0.0)
    start = torch.arange(4000) % 2 == 0
    kept, anew = explored(policy, 9), explored(policy, 9, start=start)
    assert torch.equal(kept[8][~start], anew[8][~start])
    assert not torch.equal(kept[8][start], anew[8][start])
    known = torch.corrcoef(torch.stack((anew[7][start].flatten(), anew[8][start].flatten())))[0, 1]
    assert known.abs() < 0.05 and anew[8][start].std().item() == pytest.approx(0.2, rel=0.05)


def test_who_joins_in_mid_episode_begins_to_drift_anew() -> None:
    policy = made(TWO.team)
    memory = policy.initial_memory(2)
    alive = torch.tensor([[True, False], [True, True]])
    inputs = {"obs": torch.zeros(2, 2, 6), "agent_mask": alive}
    _, memory = policy.step({**inputs, **policy.noise(2, torch.Generator())}, memory)
    assert isinstance(memory, dict)
    assert (memory["drift"][0, 1] == 0).all() and memory["kept"].squeeze(-1).gt(0).equal(alive)  # pyright: ignore
    assert (memory["drift"][1] != 0).all()  # pyright: ignore


def test_noise_falls_by_its_schedule() -> None:
    falls = ActionNoise(start=0.5, end=0.1, steps=100)
    assert [falls.size(step) for step in (0, 50, 100, 1000)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert ActionNoise(start=0.5, end=0.1).size(0) == 0.1
    for wrong in ({"start": -0.1}, {"end": -1.0}, {"steps": -1}, {"theta": 0.0}):
        with pytest.raises(ConfigError, match=f"noise.{next(iter(wrong))} is"):
            ActionNoise(**wrong)  # pyright: ignore


@pytest.mark.parametrize(("rate", "is_random"), [(0.3, False), (0.0, True)])
def test_of_choices_a_share_is_made_evenly_among_the_legal(rate: float, is_random: bool) -> None:
    team = TeamSpec.of_agents({"a_0": Vector(6)}, {"a_0": Discrete(5)}, masks_actions=True)
    policy = made(team)
    policy.rate, policy.is_random = rate, is_random
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias.copy_(torch.tensor([[50.0, 0, 20, 0, 0]]))
    envs, legal = 20_000, torch.tensor([False, True, True, False, True])
    inputs = {"obs": torch.zeros(envs, 1, 6), "agent_mask": torch.ones(envs, 1, dtype=torch.bool)}
    inputs["action_mask"] = legal.expand(envs, 1, 5)
    action = policy.step({**inputs, **policy.noise(envs, torch.Generator().manual_seed(0))}, ())[0]["action"]
    shares = torch.bincount(action.flatten(), minlength=5) / envs
    even = 1.0 if is_random else rate
    expected = legal / 3 * even
    expected[2] += 1 - even
    assert torch.allclose(shares, expected, atol=0.015)


def test_before_learning_every_part_of_a_box_is_tried_alike() -> None:
    policy = made(TWO.team, gain=1e5)
    policy.is_random = True
    tried = explored(policy, 2).flatten()
    assert torch.allclose(torch.histc(tried, 4, -1, 1) / len(tried), torch.full((4,), 0.25), atol=0.01)


def test_evaluation_knows_no_noise() -> None:
    policy = made(TWO.team)
    tested = policy.part_for("action")
    assert tested.initial_memory(3) == () and tested.head is policy.head
    inputs = {"obs": torch.randn(3, 2, 6), "agent_mask": torch.ones(3, 2, dtype=torch.bool)}
    drawn = tested.step({**inputs, **tested.noise(3, torch.Generator())}, ())[0]["action"]
    assert torch.equal(drawn, tested.step(inputs, ())[0]["action"])


# --------------------------------------------------------------------------------------------------------- two faces
@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("name", ["unequal", "dying", "multi-discrete-masked", "continuous", "image", "forced"])
def test_sequence_is_the_loop_of_step_and_of_what_acted(name: str, memory: str) -> None:
    env = BatchedEnv(WORLDS[name], 4)
    network = Network(hidden=(8,), memory=memory, memory_size=6, agent_id=True)  # pyright: ignore
    policy = made(env.team, gain=100.0, network=network)
    chain = Chain(env, policy)
    workspace = Workspace(Schema.from_team(env.team), time=12, envs=4)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(4)
    act(chain, workspace, 0, 12)
    inputs, start = {name: workspace[name][:12] for name in policy.reads}, workspace["start"][:12]
    assert start[1:].any()
    whole, after = policy.sequence(inputs, workspace.memory, start)
    loop, looped = TemporalModule.sequence(policy, inputs, workspace.memory, start)
    mask = workspace.mask
    assert torch.allclose(whole["scores"][mask], loop["scores"][mask], atol=1e-5)
    done = workspace["action"][mask]
    assert torch.allclose(whole["action"][mask].float(), done.float(), atol=1e-5)
    hidden = [each["hidden"] if isinstance(each, dict) else each for each in (after, looped)]
    assert memory == "none" or torch.allclose(*hidden, atol=1e-6)  # pyright: ignore
