"""Modules made of modules, and what looks on: names, folds, lags, copies, probes, traces, lineage."""

import copy

import pytest
import torch
from torch import Tensor, nn

from martes.data import Field, Schema, TimeStep, Vector, Workspace
from martes.data.team import Continuous, Discrete, TeamSpec
from martes.envs.batched.engine import BatchedEnv
from martes.errors import DataError
from martes.networks import Chain, Critic, Network, Policy, TemporalModule, act, replay
from martes.networks.composition import Copied, Lagged, Probe, Shared, Trace
from martes.networks.temporal import EveryoneCut
from tests.worlds import World

GRU = Network(hidden=(8,), memory="gru", memory_size=6)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def opened(env: BatchedEnv, policy: TemporalModule, time: int, **fields: Field) -> Workspace:
    """A workspace whose step 0 shows what the environment opens with."""
    schema = Schema.from_team(env.team).extended(**policy.fields(), **fields)
    workspace = Workspace(schema, time=time, envs=env.num_envs)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(env.num_envs)
    return workspace


# ---------------------------------------------------------------------------------------------------------------- names
def test_a_renamed_module_gives_the_same_under_other_names():
    env = BatchedEnv(World(), 4)
    critic = Critic(env.team, GRU, "local", "shared", generator())
    renamed = critic.renamed(value="target_value")
    assert (renamed.reads, renamed.writes) == (critic.reads, ("target_value",))
    assert list(renamed.fields()) == ["target_value"]
    inputs = {"obs": torch.randn(5, 4, 3, 6), "agent_mask": torch.ones(5, 4, 3, dtype=torch.bool)}
    start = torch.zeros(5, 4, dtype=torch.bool)
    told, _ = renamed(inputs, renamed.initial_memory(4), start)
    expected, _ = critic(inputs, critic.initial_memory(4), start)
    assert torch.equal(told["target_value"], expected["value"])
    assert "value" not in told


def test_a_renamed_policy_hears_nothing_of_the_choices_of_another():
    env = BatchedEnv(World(), 4)
    one, other = (Policy(env.team, GRU, "shared", generator(seed)) for seed in (1, 2))
    for each in (one, other):
        nn.init.normal_(each.head.weight, generator=generator(5))
    names = {"action": "other_action", "log_prob": "other_log_prob", "noise": "other_noise"}
    chain = Chain(env, one, other.renamed(**names))
    extra = {"other_action": Field((), torch.int64)}
    workspace = opened(env, chain, 12, **extra)
    act(chain, workspace, 0, 12, generator=generator(9))
    assert not torch.equal(workspace["action"], workspace["other_action"])
    assert chain.part_for("other_action").writes == ("other_action", "other_log_prob")


def test_members_of_a_chain_draw_different_streams():
    env = BatchedEnv(World(), 4)
    one = Policy(env.team, GRU, "shared", generator(1))
    twin = copy.deepcopy(one)
    names = {"action": "b", "log_prob": "c"}
    with pytest.raises(DataError, match=r"draw 'noise'.*renamed\(noise="):
        Chain(one, twin.renamed(**names)).noise(4, generator())
    drawn = Chain(one, twin.renamed(**names, noise="other_noise")).noise(4, generator())
    assert not torch.equal(drawn["noise"], drawn["other_noise"])
    again = Chain(one, twin.renamed(**names, noise="other_noise")).noise(4, generator())
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


def test_the_part_that_acts_keeps_the_name_of_its_noise():
    team = World().team
    one, other = (Policy(team, GRU, "shared", generator(seed)) for seed in (1, 2))
    names = {"action": "other_action", "log_prob": "other_log_prob", "noise": "other_noise"}
    part = Chain(other, Critic(team, GRU, "local", "shared", generator())).renamed(**names).part_for("other_action")
    assert part.writes == ("other_action", "other_log_prob")
    assert Chain(one, part).noise(2, generator()).keys() == {"noise", "other_noise"}


def test_a_name_that_the_module_does_not_know_is_refused():
    critic = Critic(World().team, GRU, "local", "shared", generator())
    with pytest.raises(DataError, match=r"Critic.*'valeu'; did you mean 'value'"):
        critic.renamed(valeu="q")
    with pytest.raises(DataError, match=r"two writers of 'value'.*\.renamed\(value="):
        Chain(critic, copy.deepcopy(critic))


# --------------------------------------------------------------------------------------------------- targets and copies
def test_a_lagged_copy_moves_by_its_share_and_has_no_gradient():
    critic = Critic(World().team, GRU, "local", "shared", generator())
    lagged = Lagged(critic, 0.25)
    before = [each.clone() for each in lagged.parameters()]
    with torch.no_grad():
        for each in critic.parameters():
            each.add_(4.0)
    lagged.follow()
    for old, new in zip(before, lagged.parameters(), strict=True):
        torch.testing.assert_close(new, old + 1.0)
    assert not any(each.requires_grad for each in lagged.parameters())
    inputs = {"obs": torch.randn(2, 3, 6), "agent_mask": torch.ones(2, 3, dtype=torch.bool)}
    both = Chain(critic, lagged.renamed(value="target_value"))
    told, _ = both(inputs, both.initial_memory(2))
    assert told["value"].requires_grad
    assert not told["target_value"].requires_grad
    assert not any(name.startswith("_online") for name in lagged.state_dict())


def test_a_target_never_overwrites_what_the_online_network_wrote():
    env = BatchedEnv(World(), 3)
    critic = Critic(env.team, GRU, "local", "shared", generator())
    policy = Policy(env.team, GRU, "shared", generator())
    chain = Chain(env, policy, critic)
    workspace = opened(env, chain, 6)
    act(chain, workspace, 0, 6, generator=generator())
    value, action = workspace["value"].clone(), workspace["action"].clone()
    replay(
        Lagged(Critic(env.team, GRU, "local", "shared", generator(8))).renamed(value="target_value"),
        workspace_of(workspace, critic),
    )
    assert torch.equal(workspace["value"], value)
    assert torch.equal(workspace["action"], action)


def workspace_of(workspace: Workspace, module: TemporalModule) -> Workspace:
    """The same steps before which this module remembers nothing."""
    view = workspace.window(0, workspace.time)
    view.memory = module.initial_memory(workspace.envs)
    return view


def test_frozen_copies_stay_and_learn_nothing():
    critic = Critic(World().team, GRU, "local", "shared", generator())
    frozen = critic.frozen()
    assert isinstance(frozen, Critic)
    assert not any(each.requires_grad for each in frozen.parameters())
    assert all(each.requires_grad for each in critic.parameters())


@pytest.mark.parametrize("is_detached", [True, False])
def test_a_copy_is_made_in_both_faces_and_may_stop_the_gradient(is_detached):
    copied = Copied({"value": "old_value"}, is_detached)
    value = torch.randn(4, 3, 2, requires_grad=True)
    start = torch.zeros(4, 3, dtype=torch.bool)
    (whole, _), (one, _) = copied({"value": value}, (), start), copied({"value": value[0]}, ())
    assert torch.equal(whole["old_value"], value)
    assert torch.equal(one["old_value"], value[0])
    assert whole["old_value"].requires_grad is one["old_value"].requires_grad is not is_detached


# -------------------------------------------------------------------------------------------- one agent's network, many
class Alone(TemporalModule):
    """A network for one agent: a GRU over its observation `env feature`."""

    reads, writes = ("obs",), ("score",)

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 5)

    def initial_memory(self, envs: int) -> Tensor:
        return torch.zeros(envs, 5)

    def step(self, inputs, memory):
        after = self.cell(inputs["obs"], memory)
        return {"score": after.sum(-1)}, after


def test_shared_agents_are_that_many_environments():
    shared = Shared(Alone(), 3)
    obs, mask = torch.randn(6, 4, 3, 6), torch.rand(6, 4, 3) < 0.8
    start = torch.rand(6, 4) < 0.2
    inputs = {"obs": obs, "agent_mask": mask}
    whole, after = shared(inputs, shared.initial_memory(4), start)
    looped, looped_after = TemporalModule.sequence(shared, inputs, shared.initial_memory(4), start)
    assert torch.allclose(whole["score"], looped["score"], atol=1e-6)
    assert torch.allclose(after, looped_after, atol=1e-6)
    assert after.shape == (4, 3, 5)
    assert (after[~mask[-1]] == 0).all()
    # Agent 1 of environment 2, alone, where it is always there.
    everyone = {"obs": obs, "agent_mask": torch.ones_like(mask)}
    told, _ = shared(everyone, shared.initial_memory(4), start)
    alone, _ = shared.module({"obs": obs[:, 2:3, 1]}, shared.module.initial_memory(1), start[:, 2:3])
    assert torch.allclose(told["score"][:, 2, 1], alone["score"][:, 0], atol=1e-6)


def test_a_policy_of_one_acts_for_a_team():
    env = BatchedEnv(World(agents=3), 4)
    single = TeamSpec.of_agents({"a_0": Vector(6)}, {"a_0": Discrete(5)})
    policy = Policy(single, GRU, "shared", generator())
    shared = Shared(policy, 3, keeps_axis=True)
    workspace = opened(env, shared, 12)
    act(Chain(env, shared), workspace, 0, 12, generator=generator())
    told = replay(shared, workspace, given=("action",))
    assert torch.allclose(told["log_prob"][workspace.mask], workspace["log_prob"][workspace.mask], atol=1e-5)
    assert workspace["action"].unique().numel() > 1
    noise = shared.noise(4, generator())["noise"]
    assert noise.shape == (4, 3, 5)
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_shared_values_draw_for_each_agent():
    class Gamble(TemporalModule):
        reads, writes = ("obs",), ("value",)

        def value_noise(self, envs, generator):
            return {"luck": torch.randn(envs, generator=generator)}

        def value(self, inputs, memory):
            return inputs["obs"].sum(-1) + inputs["luck"]

    shared = Shared(Gamble(), 3)
    luck = shared.value_noise(2, generator())["luck"]
    assert luck.unique().numel() == 6
    seen = {"obs": torch.ones(2, 3, 4), "agent_mask": torch.ones(2, 3, dtype=torch.bool), "luck": luck}
    assert torch.equal(shared.value(seen, ()), 4 + luck)


def test_shared_agents_see_the_state_whole():
    class OfState(TemporalModule):
        reads, writes = ("state",), ("score",)

        def step(self, inputs, memory):
            return {"score": inputs["state"].sum(-1)}, memory

    state = torch.randn(2, 9)
    told, _ = Shared(OfState(), 3)({"state": state, "agent_mask": torch.ones(2, 3, dtype=torch.bool)}, ())
    assert torch.allclose(told["score"], state.sum(-1, keepdim=True).expand(2, 3))


# ----------------------------------------------------------------------------------------------------------- looking on
def test_a_probe_sees_and_touches_nothing():
    env = BatchedEnv(World(), 3)
    policy = Policy(env.team, GRU, "shared", generator())
    seen: list[tuple[int, ...]] = []
    probe = Probe("action", "log_prob", tell=lambda named: seen.append(tuple(named["log_prob"].shape)))
    plain, probed = Chain(env, policy), Chain(env, policy, probe)
    records = []
    for chain in (plain, probed):
        workspace = opened(env, chain, 4)
        if chain is probed:
            workspace.memory = chain.initial_memory(3)
        act(chain, workspace, 0, 4, generator=generator())
        records.append(workspace)
    assert all(torch.equal(records[0][name], records[1][name]) for name in records[0].names)
    assert seen == [(3, 3)] * 4
    replay(probed, records[1], given=("action",))
    assert seen[-1] == (4, 3, 3)
    with pytest.raises(DataError, match=r"Probe reads '(action|log_prob)', which Policy writes after it"):
        Chain(probe, policy)


def test_a_trace_lists_what_was_read_and_written_in_order():
    env = BatchedEnv(World(), 2)
    policy = Policy(env.team, Network(hidden=(4,)), "shared", generator())
    chain = Chain(env, policy)
    workspace = opened(env, chain, 3)
    with Trace(chain) as trace:
        act(chain, workspace, 0, 3)
    step = [event[1:] for event in trace.events if event.call == 1]
    assert step[:4] == [
        ("Policy", "reads", "obs", (2, 3, 6)),
        ("Policy", "reads", "agent_mask", (2, 3)),
        ("Policy", "writes", "action", (2, 3)),
        ("Policy", "writes", "log_prob", (2, 3)),
    ]
    assert step[4] == ("BatchedEnv", "reads", "action", (2, 3))
    assert {event[2] for event in step[5:]} >= {"reward", "discount", "cut", "obs", "start"}
    assert [event.call for event in trace.events] == sorted(event.call for event in trace.events)
    assert {event.call for event in trace.events} == {0, 1, 2}
    before = len(trace.events)
    act(chain, workspace, 0, 3)
    assert len(trace.events) == before, "outside its context nothing is noted"
    assert chain.env is env


def test_a_missing_field_tells_who_needs_it_and_who_could_write_it():
    env = BatchedEnv(World(), 2)
    policy = Policy(env.team, Network(hidden=(4,)), "shared", generator())
    bare = Workspace(Schema.from_team(env.team), time=2, envs=2)
    with pytest.raises(
        DataError, match=r"Policy need.* 'log_prob'.*Policy would write it: extend.*obs \(the environment"
    ):
        act(Chain(env, policy), bare, 0, 2)
    probe = Probe("value", tell=print)
    with pytest.raises(DataError, match=r"Probe need the field 'value'.*Critic.* could write it: put one before Probe"):
        replay(probe, bare)


# ----------------------------------------------------------------------------------------------------- windows and ends
def test_the_memory_of_another_module_is_refused_and_who_has_none_needs_none():
    env = BatchedEnv(World(), 2)
    policy = Policy(env.team, GRU, "shared", generator())
    workspace = opened(env, policy, 4)
    act(Chain(env, policy), workspace, 0, 4)
    critic = Critic(env.team, GRU, "local", "shared", generator())
    with pytest.raises(DataError, match=r"form None, that of Chain has \[None, None\]"):
        replay(Chain(policy, critic), workspace, given=("action",))
    plain = Critic(env.team, Network(hidden=(4,)), "local", "shared", generator())
    assert torch.equal(replay(plain, workspace)["value"], replay(plain, workspace, stepwise=True)["value"])


def test_two_windows_are_the_record_of_one():
    policy = Policy(World().team, GRU, "shared", generator())
    nn.init.normal_(policy.head.weight, generator=generator(4))
    env = BatchedEnv(World(), 4)
    whole = opened(env, policy, 10)
    act(Chain(env, policy), whole, 0, 10, generator=generator(6))

    draws = generator(6)
    chunk = opened(env, policy, 5)
    chain = Chain(env, policy)
    memory = act(chain, chunk, 0, 5, generator=draws)
    first = {name: chunk[name].clone() for name in chunk.names}
    chunk.carry()
    chunk.memory = memory
    act(chain, chunk, 0, 5, generator=draws)
    for name in whole.names:
        halves = torch.cat((first[name][:5], chunk[name]))
        assert torch.equal(halves, whole[name]), name
    # The same within one workspace: a window is a view with a memory of its own.
    again, draws = opened(env, policy, 10), generator(6)
    memory = act(chain, again, 0, 5, generator=draws)
    second = again.window(5, 10)
    second.memory = memory
    act(chain, second, 0, 5, generator=draws)
    assert all(torch.equal(again[name], whole[name]) for name in whole.names)


def test_acting_ends_once_every_environment_has_ended():
    env = BatchedEnv(World(ends=0.15, limit=40), 6)
    policy = Policy(env.team, Network(hidden=(4,)), "shared", generator())
    workspace = opened(env, policy, 40)
    act(Chain(env, policy), workspace, 0, 40, generator=generator(), on_cut=EveryoneCut())
    cut = workspace["cut"]
    steps = int(workspace.mask.any(-1).any(-1).sum())
    assert cut[:steps].any(0).all() and not cut[: steps - 1].any(0).all()
    assert steps < 40
    first = workspace.first_episodes.any(-1)
    lengths = cut.long().argmax(0) + 1
    assert torch.equal(first.sum(0), lengths)
    workspace["reward"][~workspace.mask.any(-1)] = 1e6
    assert workspace["reward"][workspace.first_episodes].abs().max() < 100


def test_lagged_and_renamed_of_continuous_policies_keep_their_choice():
    team = TeamSpec.of_agents({"a_0": Vector(3)}, {"a_0": Continuous((-1.0,), (1.0,))})
    policy = Policy(team, Network(hidden=(4,)), "shared", generator())
    target = Lagged(policy).renamed(action="target_action", sample="target_sample", log_prob="target_log_prob")
    inputs = {"obs": torch.randn(2, 1, 3), "agent_mask": torch.ones(2, 1, dtype=torch.bool)}
    told, _ = Chain(policy, target)(inputs, ())
    assert torch.equal(told["action"], told["target_action"])


# ---------------------------------------------------------------------------------------------------- what is recorded
class Clock:
    """Edits its tensors in place, and restarts each copy at a time of its own."""

    num_envs = 2

    def __init__(self) -> None:
        self.now, self.false = torch.zeros(2, 1, 1), torch.zeros(2, dtype=torch.bool)

    def step(self, action: Tensor) -> TimeStep:
        self.now += 1
        cut = (self.now == torch.tensor([[[3.0]], [[5.0]]])).flatten()
        self.now.masked_fill_(cut.view(2, 1, 1), 0)
        ones = torch.ones(2, 1)
        return TimeStep({"obs": self.now, "agent_mask": ones.bool()}, cut, ones, ones, cut)


class Still(TemporalModule):
    """Does nothing."""

    reads, writes = ("obs",), ("action",)

    def step(self, inputs, memory):
        return {"action": torch.zeros(2, 1, dtype=torch.int64)}, memory


def test_an_environment_that_edits_its_tensors_is_recorded_as_it_was():
    team = TeamSpec.of_agents({"a_0": Vector(1)}, {"a_0": Discrete(2)})
    workspace = Workspace(Schema.from_team(team), time=7, envs=2)
    workspace["start"][0] = True
    chain = Chain(Clock(), Still())
    assert list(chain.parameters()) == [] and chain.state_dict() == {}, "an environment has no weights"
    act(chain, workspace, 0, 7)
    assert workspace["obs"][:, 0].flatten().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert workspace["obs"][:, 1].flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert workspace["start"].nonzero().tolist() == [[0, 0], [0, 1], [3, 0], [5, 1], [6, 0]]
