import pytest
import torch

from martes.data import Workspace
from martes.data.schema import Schema
from martes.envs.batched.engine import BatchedEnv
from martes.envs.catalogue import make_env
from martes.networks import Chain, act
from martes.report.chance import UniformPolicy, random_play
from tests.worlds import WORLDS


def played(world, steps=200, envs=16, seeded=True):
    env = BatchedEnv(WORLDS[world], envs)
    policy = UniformPolicy(env.team)
    workspace = Workspace(Schema.from_team(env.team), time=steps, envs=envs)
    first = env.reset(0)
    workspace.write(0, {**first.seen, "start": first.start})
    generator = torch.Generator().manual_seed(0) if seeded else None
    act(Chain(env, policy), workspace, 0, steps, generator=generator)
    return env.team, workspace


@pytest.mark.parametrize("world", ["discrete", "masked", "unequal"])
def test_every_legal_action_is_equally_likely_and_no_other_is_taken(world):
    team, workspace = played(world)
    action = workspace["action"]
    legal = team.legal_actions.expand(*action.shape, -1)
    if team.masks_actions:
        legal = legal & workspace["action_mask"][: workspace.time]
    assert legal.gather(-1, action[..., None]).all()
    expected = (legal / legal.sum(-1, keepdim=True)).sum((0, 1))  # agent action
    counted = torch.nn.functional.one_hot(action, legal.shape[-1]).sum((0, 1))
    assert ((counted - expected).abs() <= 5 * expected.sqrt()).all()


def test_sub_actions_are_drawn_within_their_own_sizes():
    team, workspace = played("multi-discrete")
    for agent, sizes in enumerate(team.action_sizes):
        for sub, size in enumerate(sizes):
            assert workspace["action"][:, :, agent, sub].unique().tolist() == list(range(size))


def test_continuous_actions_fill_their_bounds():
    team, workspace = played("continuous")
    low, high = team.bounds
    share = (workspace["action"] - low) / (high - low)
    assert share.min() >= 0 and share.max() <= 1
    assert (share.mean((0, 1)) - 0.5).abs().max() < 0.03 and (share.var((0, 1)) - 1 / 12).abs().max() < 0.01


@pytest.mark.parametrize("world", WORLDS)
def test_it_plays_every_kind_of_team_with_and_without_noise(world):
    _, workspace = played(world, steps=3)
    _, greedy = played(world, steps=3, seeded=False)
    assert workspace["action"].shape == greedy["action"].shape


def test_random_play_of_a_matrix_game_earns_the_mean_of_its_table():
    # Climbing: the nine entries 11, -30, 0, -30, 7, 6, 0, 0, 5 sum to -31; both agents are paid.
    found = random_play(make_env("climbing", 100), episodes=4000)
    assert found.low < 2 * -31 / 9 < found.high and found.high - found.low < 2.5
