"""A policy told which return to reach: two faces, no token known too soon, and what it counts as earned."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from martes.data import Schema, Workspace
from martes.data.trees import leaves
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Chain, Network, Policy, act, replay
from martes.networks.return_conditioned import ReturnConditioned
from tests.worlds import WORLDS, World, crossed

NETWORK = Network(hidden=(16,), memory="attention", memory_size=16, memory_heads=2, memory_layers=2, channels=(4,))


def recorded(
    world: World, tokens: Literal[1, 3], sharing: str = "shared", context: int = 4, time: int = 14
) -> tuple[ReturnConditioned, Workspace]:
    generator = torch.Generator().manual_seed(5)
    env = BatchedEnv(world, 4)
    network = Network(**{**vars(NETWORK), "memory_window": context * tokens})
    policy = ReturnConditioned(env.team, network, sharing, tokens, generator)
    policy.asked.fill_(3.0)
    with torch.no_grad():
        policy.head.weight.mul_(100)
    workspace = Workspace(Schema.from_team(env.team).extended(**policy.fields()), time=time, envs=4)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(4)
    act(Chain(env, policy), workspace, 0, time, generator=generator)
    assert workspace["start"][1:-1].any()
    return policy, workspace


@pytest.mark.parametrize(("world", "sharing", "tokens"), crossed([*WORLDS], ["shared", "group", "agent"], ["1", "3"]))
def test_sequence_is_the_loop_of_step_and_of_what_acted(world: str, sharing: str, tokens: str) -> None:
    policy, workspace = recorded(WORLDS[world], int(tokens), sharing)
    given = (policy.choices.choice,)
    whole, loop = replay(policy, workspace, given=given), replay(policy, workspace, given=given, stepwise=True)
    mask = workspace.mask
    for name in ("log_prob", "entropy"):
        assert torch.allclose(whole[name][mask], loop[name][mask], atol=1e-5), name
    assert torch.allclose(whole["log_prob"][mask], workspace["log_prob"][mask], atol=1e-5)
    assert torch.allclose(whole["action"].float()[mask], workspace["action"].float()[mask], atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_memory_goes_on_where_a_window_ends(tokens: Literal[1, 3]) -> None:
    policy, workspace = recorded(WORLDS["dying"], tokens)
    inputs = {name: workspace[name][:14] for name in (*policy.reads, "action")}
    start, memory = workspace["start"][:14], workspace.memory
    whole, after = policy.sequence(inputs, memory, start)
    first, memory = policy.sequence({name: value[:6] for name, value in inputs.items()}, memory, start[:6])
    second, memory = policy.sequence({name: value[6:] for name, value in inputs.items()}, memory, start[6:])
    parts = torch.cat((first["log_prob"], second["log_prob"]))
    assert torch.allclose(parts[workspace.mask], whole["log_prob"][workspace.mask], atol=1e-5)
    for (name, mine), (_, its) in zip(leaves(memory), leaves(after), strict=True):
        if name.endswith("done"):
            assert torch.equal(mine, its)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("changed", ["obs", "earned", "action"])
def test_no_output_depends_on_a_later_token(changed: str, tokens: Literal[1, 3]) -> None:
    policy, workspace = recorded(World(agents=2), tokens, context=20)
    inputs = {name: workspace[name][:14].clone() for name in (*policy.reads, "action")}
    start = workspace["start"][:14]

    def log_probs() -> torch.Tensor:
        pi = policy.distribution(inputs, policy.initial_memory(4), start)
        return pi.log_probs.detach()

    before, t = log_probs(), 5
    field = inputs[changed]
    field[t] = (field[t] + 1) % 3 if changed == "action" else field[t] + 1
    after = log_probs()
    first = t + 1 if changed == "action" else t  # an action is not known to itself
    assert torch.equal(before[:first], after[:first])
    goes_on = ~start[first] if first > t else torch.ones_like(start[t])
    assert bool(goes_on.any()) and not torch.equal(before[first][goes_on], after[first][goes_on])
    opened = start[t + 1 :].cumsum(0) > 0  # other episodes know nothing of it
    assert torch.equal(before[t + 1 :][opened], after[t + 1 :][opened])


def test_what_was_earned_is_counted_from_the_start_of_each_episode() -> None:
    _, workspace = recorded(World(), 3)
    earned = torch.zeros(4, 3)
    for t in range(workspace.time):
        earned = earned.masked_fill(workspace["start"][t].unsqueeze(1), 0)
        assert torch.allclose(workspace["earned"][t], earned, atol=1e-5)
        earned = earned + workspace["reward"][t]


def test_three_tokens_are_a_token_more_than_two() -> None:
    """Each token of a step is told apart, and a context of k steps is one of 3 k tokens."""
    policy, workspace = recorded(World(ends=0.0, limit=14, agents=1), 3, context=2, time=15)
    inputs = {name: workspace[name][:14].clone() for name in (*policy.reads, "action")}
    start = workspace["start"][:14]
    before = policy.distribution(inputs, policy.initial_memory(4), start).log_probs.detach()
    inputs["obs"][3] += 1
    after = policy.distribution(inputs, policy.initial_memory(4), start).log_probs.detach()
    is_moved = (before != after).flatten(1).any(1)
    # Two layers of 6 tokens see 5 + 5 tokens back: the last that knows of step 3 is step 6.
    assert is_moved.tolist() == [t in (3, 4, 5, 6) for t in range(14)]


@pytest.mark.parametrize("memory", ["none", "gru", "attention", "retention"])
@pytest.mark.parametrize("every", [1, 3])
def test_of_each_few_steps_the_last_is_read(memory: Literal["none", "gru", "attention", "retention"], every: int):
    network = replace(NETWORK, memory=memory, memory_window=4)
    team = WORLDS["discrete"].team
    policy = Policy(team, network, "shared", torch.Generator().manual_seed(0))
    inputs = {"obs": torch.randn(12, 4, team.size, 6), "agent_mask": torch.ones(12, 4, team.size, dtype=torch.bool)}
    start = torch.zeros(12, 4, dtype=torch.bool)
    start[5, 1] = True
    memory_before = policy.body.initial_memory(4)
    whole, after = policy.body.sequence(inputs, memory_before, start)
    read, again = policy.body.sequence(inputs, memory_before, start, every)
    assert torch.allclose(read, whole.unflatten(1, (12, -1))[:, every - 1 :: every].flatten(1, 2), atol=1e-6)
    for (_, one), (_, other) in zip(leaves(after), leaves(again), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 3])
def test_statistics_of_what_is_seen_leave_the_return_as_it_is(tokens: Literal[1, 3]) -> None:
    network = replace(NETWORK, normalise=True)
    policy = ReturnConditioned(World().team, network, "shared", tokens, torch.Generator().manual_seed(0))
    there = torch.ones(9, 4, 3, dtype=torch.bool)
    seen = {"obs": torch.randn(9, 4, 3, 6), "agent_mask": there, "action": torch.zeros(9, 4, 3, dtype=torch.int64)}
    with torch.no_grad():
        policy.head.weight.mul_(100)
    policy.observe({**seen, "return_to_go": torch.zeros(9, 4, 3)}, there)

    def log_probs(wanted: float) -> torch.Tensor:
        inputs = {**seen, "return_to_go": torch.full((9, 4, 3), wanted)}
        return policy.distribution(inputs, policy.initial_memory(4), ~there[..., 0]).log_probs.detach()

    assert not torch.allclose(log_probs(0.5), log_probs(1.0), atol=1e-3)
