"""What the next in turn learns of an action, and how actions of each kind are scored."""

import pytest
import torch
from torch import Tensor

from martes.networks.actions import ActionTokens, Choices
from martes.networks.sharing import Slots, slot_of_agents
from tests.worlds import World

KINDS = ["discrete", "multi", "continuous"]


def tokens_of(world: World, sharing: str = "shared") -> ActionTokens:
    slots = Slots(slot_of_agents(world.team, sharing))  # pyright: ignore
    return ActionTokens(world.team, slots, 8, torch.Generator().manual_seed(0))


def drawn(world: World, lead: tuple[int, ...] = (2,)) -> Tensor:
    if world.kind == "continuous":
        low, high = world.team.bounds
        return low + (high - low) * torch.rand(*lead, *low.shape)
    shape = (*lead, world.agents, *([3] if world.kind == "multi" else []))
    return torch.randint(2, shape)


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_of_the_last_before_it_who_was_there(kind: str) -> None:
    world = World(kind, agents=5)  # pyright: ignore
    tokens, action = tokens_of(world), drawn(world)
    mask = torch.tensor([[True] * 5, [False, True, False, False, True]])
    told, own = tokens.previous(tokens.content(action), mask), tokens.content(action)
    nobody = tokens.first((1,))
    assert torch.equal(told[0], torch.cat((nobody, own[0, :4])))
    assert torch.equal(told[1], torch.cat((nobody, nobody, own[1, [1, 1, 1]])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_team_tells_what_it_tells_in_the_whole(kind: str) -> None:
    world = World(kind, is_unequal=True, agents=4)  # pyright: ignore
    tokens, action = tokens_of(world, "group"), drawn(world)
    whole = tokens.content(action)
    for agent in range(4):
        turn = slice(agent, agent + 1)
        assert torch.equal(tokens.content(action[:, turn], turn), whole[:, turn])


@pytest.mark.parametrize("kind", KINDS)
def test_slots_have_words_of_their_own(kind: str) -> None:
    world = World(kind, agents=3)  # pyright: ignore
    action = drawn(world)[:, :1].expand(-1, 3, *[-1] * (kind != "discrete"))  # all three do the same
    shared, own = (tokens_of(world, sharing) for sharing in ("shared", "agent"))
    said = shared(shared.content(action))
    assert torch.equal(said[:, 0], said[:, 1])
    said = own(own.content(action))
    assert not torch.isclose(said[:, 0], said[:, 1]).any(-1).all()
    assert said.std() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_is_no_action(kind: str) -> None:
    world = World(kind)  # pyright: ignore
    tokens = tokens_of(world)
    if kind == "continuous":
        low, high = world.team.bounds
        action = ((low + high) / 2).unsqueeze(0)  # scaled: zero
    else:
        action = torch.zeros_like(drawn(world, (1,)))
    said, nothing = tokens(tokens.content(action)), tokens(tokens.first((1, 3)))
    assert not torch.isclose(said, nothing, atol=1e-3).all(-1).any()


def test_scaled_actions_lie_in_the_unit_box_and_padding_says_nothing() -> None:
    world = World("continuous", is_unequal=True)
    tokens, action = tokens_of(world, "group"), drawn(world)
    told = tokens.content(action)
    assert told.abs().max() <= 1 + 1e-6
    action[:, ~world.team.legal_actions] = 50.0
    assert torch.equal(told, tokens.content(action))
    low, high = world.team.bounds
    legal = world.team.legal_actions.float()
    big = tokens.content(high.unsqueeze(0))[0, 1, 1:].view(2, 4)  # slot (dimension, bias)
    assert torch.equal(big.sum(0), torch.cat((legal[1], torch.ones(1))))
    assert torch.equal(tokens.content(low.unsqueeze(0))[0, 1, 1:].view(2, 4).sum(0)[:3], -legal[1])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_some_are_scores_of_all(kind: str) -> None:
    world = World(kind, is_unequal=True, has_masks=kind != "continuous")  # pyright: ignore
    team = world.team
    choices = Choices(team, Slots(slot_of_agents(team, "group")))
    if choices.is_continuous:
        with torch.no_grad():
            choices.log_std.normal_()
    scores = torch.randn(2, 3, choices.outputs)
    inputs = {"agent_mask": torch.ones(2, 3, dtype=torch.bool), **choices.noise(2, torch.Generator().manual_seed(0))}
    if world.has_masks:
        inputs["action_mask"] = torch.rand(2, *team.legal_actions.shape) < 0.7
        inputs["action_mask"][..., 0] = True
    sample = choices.sample(scores, inputs)
    scored = choices.scored(scores, sample, inputs)
    for agent in range(3):
        turn = slice(agent, agent + 1)
        mine = {name: value[:, turn] for name, value in inputs.items()}
        assert torch.equal(choices.sample(scores[:, turn], mine, turn), sample[:, turn])
        one = choices.distribution(scores[:, turn], mine, turn)
        assert torch.allclose(one.log_prob(sample[:, turn]), scored["log_prob"][:, turn])
    greedy = choices.sample(scores, {name: value for name, value in inputs.items() if name != "noise"})
    assert torch.equal(greedy, choices.distribution(scores, inputs).mode())
    assert torch.equal(choices.sample(scores, {**inputs, choices.choice: sample * 0}), sample * 0)
