"""Who knows what in a Sable team: the past of the episode, the present, those who acted before; nothing else."""

from dataclasses import replace

import pytest
import torch

from martes.data.trees import leaves
from martes.networks import replay
from martes.networks.autoregressive import AutoregressiveTeam
from tests.networks.sables import SHAPES, Absence, enlivened, inputs_of, made, recorded
from tests.worlds import WORLDS, World


def test_memory_matters_and_stays_inside_its_episode() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6), SHAPES["memory"])
    before = replay(chain, workspace, given=("action",))
    workspace["obs"][0] += 1.0
    after = replay(chain, workspace, given=("action",))
    for name in ("value", "log_prob"):
        assert not torch.isclose(before[name][5], after[name][5]).any(), "the end must know the beginning"
        assert torch.equal(before[name][6:], after[name][6:]), "the second episode must know nothing of the first"
    workspace["action"][0] = (workspace["action"][0] + 1) % 5
    other = replay(chain, workspace, given=("action",))
    assert not torch.isclose(after["log_prob"][5], other["log_prob"][5]).any(), "actions are remembered"
    assert torch.equal(after["value"], other["value"]), "a value does not depend on actions"


def test_without_memory_a_step_stands_alone() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6), SHAPES["no memory"])
    assert chain.initial_memory(4) == ()
    before = replay(chain, workspace, given=("action",))["value"]
    workspace["obs"][0] += 1.0
    after = replay(chain, workspace, given=("action",))["value"]
    assert not torch.isclose(before[0], after[0]).any() and torch.equal(before[1:], after[1:])


def test_memory_that_decays_at_once_is_none() -> None:
    """s = 0 without a clock is the form without memory, on one and on many steps."""
    world = WORLDS["dying"]
    shape = replace(SHAPES["memory"], decay_scale=0.0, time_encoding="none")
    forgetful, plain = made(world, shape), made(world, replace(shape, memory=False))
    plain.load_state_dict(forgetful.state_dict())
    chain, workspace = recorded(world, shape)
    inputs, start = inputs_of(chain, workspace), workspace["start"][:12]
    one, _ = forgetful.sequence(inputs, forgetful.initial_memory(4), start)
    other, _ = plain.sequence(inputs, (), start)
    for name in ("log_prob", "value"):
        assert torch.allclose(one[name], other[name], atol=1e-5), name


def test_an_agent_knows_the_actions_before_its_own_and_no_others() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6, agents=4), SHAPES["memory"])
    before = replay(chain, workspace, given=("action",))
    workspace["action"][2, :, 1] = (workspace["action"][2, :, 1] + 1) % 5
    after = replay(chain, workspace, given=("action",))
    same = torch.isclose(before["entropy"], after["entropy"], rtol=0, atol=1e-6)
    assert same[:2].all() and same[2, :, :2].all() and same[6:].all()
    assert not same[2, :, 2:].any() and not same[3:6].any(-1).all()
    # What the last in turn does enters no memory: the next step begins afresh with no action at all.
    workspace["action"][3, :, 3] = (workspace["action"][3, :, 3] + 1) % 5
    last = replay(chain, workspace, given=("action",))
    assert torch.equal(last["entropy"], after["entropy"])


def test_nothing_later_is_known() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=20), SHAPES["memory"], time=23)
    before = replay(chain, workspace, given=("action",))
    workspace["obs"][9:] += 1.0
    after = replay(chain, workspace, given=("action",))
    for name in ("value", "log_prob"):
        assert torch.equal(before[name][:9], after[name][:9])
        assert not torch.isclose(before[name][9:20], after[name][9:20]).all()


def test_the_encoder_knows_no_order_of_agents_the_decoder_does() -> None:
    shape = replace(SHAPES["memory"], agent_id=False)
    chain, workspace = recorded(WORLDS["discrete"], shape, "shared")
    order = [2, 0, 1]
    before = replay(chain, workspace, given=("action",))
    for name in ("obs", "action"):
        workspace[name] = workspace[name][:, :, order].clone()
    after = replay(chain, workspace, given=("action",))
    assert torch.allclose(before["value"][:, :, order], after["value"], atol=1e-5)
    assert not torch.allclose(before["log_prob"][:, :, order], after["log_prob"], atol=1e-2)


def test_absent_agents_are_as_if_not_in_the_team() -> None:
    Absence.drawn(SHAPES["memory"]).check()


def test_value_is_that_of_step_and_needs_no_choice() -> None:
    chain, workspace = recorded(WORLDS["masked"], SHAPES["memory"])
    _, memory = chain.sequence(inputs_of(chain, workspace), workspace.memory, workspace["start"][:12])
    seen = workspace.at(12, chain.reads)
    value = chain.value(seen, memory)
    assert torch.equal(value, chain.step(seen, memory)[0]["value"])
    assert not torch.isclose(value, chain.value(seen, chain.initial_memory(4))).any()
    del seen["action_mask"]
    assert torch.equal(value, chain.value(seen, memory))


@pytest.mark.parametrize("kind", ["discrete", "multi", "continuous"])
def test_what_is_forced_is_done_and_known(kind: str) -> None:
    world = World(kind)
    team = replace(world.team, forces_actions=True)
    sable = enlivened(AutoregressiveTeam(team, SHAPES["memory"], "shared", torch.Generator().manual_seed(0)))
    assert {"forced", "forced_action"} <= set(sable.reads)
    inputs = {
        "obs": torch.randn(2, 3, 6),
        "agent_mask": torch.ones(2, 3, dtype=torch.bool),
        "forced": torch.tensor([[True, False, False]] * 2),
        **sable.noise(2, torch.Generator().manual_seed(1)),
    }
    free = sable.step({k: v for k, v in inputs.items() if k != "forced"}, sable.initial_memory(2))[0]
    own = free["action"]
    forced = own.clone()
    forced[:, 0] = (own[:, 0] + 1) % 2 if kind != "continuous" else own[:, 0] * 0.5 + 0.7
    out, after = sable.step({**inputs, "forced_action": forced}, sable.initial_memory(2))
    assert torch.equal(out["action"][:, 0], forced[:, 0])
    choice = sable.given[0]
    alone = {name: each for name, each in inputs.items() if name != "forced"} | {choice: free[choice]}
    told = {**inputs, "forced_action": forced, choice: out[choice]}
    spread, its_spread = (sable.step(each, sable.initial_memory(2))[0]["entropy"] for each in (alone, told))
    assert not torch.isclose(its_spread[:, 1:], spread[:, 1:]).any(), "later agents know what was done"
    assert torch.equal(its_spread[:, 0], spread[:, 0])
    given = {**inputs, "forced_action": forced, sable.given[0]: out[sable.given[0]]}
    given = {name: value.unsqueeze(0) for name, value in given.items() if name != "noise"}
    scored, its = sable.sequence(given, sable.initial_memory(2), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(scored["action"][0], out["action"])
    assert torch.allclose(scored["log_prob"][0, :, 1:], out["log_prob"][:, 1:], atol=2e-5)
    for (path, one), (_, other) in zip(leaves(after), leaves(its), strict=True):
        assert torch.allclose(one, other, atol=2e-5), path


@pytest.mark.parametrize("world", ["masked", "unequal", "multi-discrete-masked", "continuous"])
def test_only_legal_actions_are_drawn(world: str) -> None:
    _, workspace = recorded(WORLDS[world], SHAPES["memory"], time=30)
    team, action = WORLDS[world].team, workspace["action"]
    assert workspace["log_prob"].isfinite().all()
    if WORLDS[world].kind == "continuous":
        low, high = team.bounds
        assert ((action >= low) & (action <= high)).all()
        return
    legal = team.legal_actions & workspace["action_mask"][:-1]
    is_legal = legal.gather(-1, action.unsqueeze(-1)).squeeze(-1) | ~legal.any(-1)
    assert is_legal.all()


def test_the_clock_runs_from_the_start_of_an_episode_and_without_end() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6), SHAPES["memory"], time=14)
    _, memory = chain.sequence(inputs_of(chain, workspace), workspace.memory, workspace["start"][:14])
    assert memory["elapsed"].tolist() == [2] * 4
    memory["elapsed"] = torch.tensor([0, 1, 10**5, 10**5 + 1])
    seen = workspace.at(14, chain.reads)
    same = {name: value[:1].expand_as(value) for name, value in seen.items()}
    memory = {**memory, **{k: memory[k][:1].expand_as(memory[k]) for k in ("encoder", "own", "crossed")}}
    value = chain.value(same, memory)
    assert value.isfinite().all() and len({*value[:, 0].tolist()}) == 4


def test_padding_is_never_read() -> None:
    chain, workspace = recorded(WORLDS["continuous"], SHAPES["memory"])
    before = replay(chain, workspace, given=("sample",))
    padded = ~WORLDS["continuous"].team.legal_actions
    workspace["sample"][:, :, padded] = 3.0
    after = replay(chain, workspace, given=("sample",))
    assert padded.any()
    assert torch.equal(before["log_prob"], after["log_prob"])
