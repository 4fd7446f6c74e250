"""The law of two faces, for every module; the chain; the acting loop."""

import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from martes.data import Discrete, Field, Schema, TeamSpec, Vector, Workspace
from martes.data.trees import leaves
from martes.envs.batched.engine import BatchedEnv
from martes.errors import DataError
from martes.networks import Chain, Critic, Network, Policy, TemporalModule, act, replay
from tests.worlds import WORLDS, World, crossed

NETWORKS = {
    "mlp": Network(hidden=(16, 16), layer_norm=True, agent_id=True),
    "gru": Network(hidden=(16,), memory="gru", memory_size=12, activation="tanh"),
    "attention 5": Network(hidden=(16,), memory="attention", memory_size=8, memory_window=5, memory_layers=2),
}
BLOCKS = {
    "attention 1": Network(hidden=(16,), memory="attention", memory_size=8, memory_window=1),
    "attention T": Network(hidden=(16,), memory="attention", memory_size=8, memory_window=12, memory_norm=False),
    "attention all": Network(hidden=(16,), memory="attention", memory_size=16, memory_window=40),
    "retention": Network(hidden=(16,), memory="retention", memory_size=8, memory_layers=2),
    "retention, no norm": Network(hidden=(16,), memory="retention", memory_size=8, memory_norm=False),
}
REMEMBERING = {name: each for name, each in {**NETWORKS, **BLOCKS}.items() if name not in ("mlp", "attention 1")}


def recorded(
    world: World, network: Network, sharing: str = "group", time: int = 12, envs: int = 4
) -> tuple[Chain, Workspace]:
    """A policy and critics of both views, and a window in which they acted."""
    generator = torch.Generator().manual_seed(7)
    env = BatchedEnv(world, envs)
    actor = Policy(env.team, network, sharing, generator)
    with torch.no_grad():
        actor.head.weight.mul_(100)  # a policy that is far from uniform
    critic = Critic(env.team, network, "central" if world.has_state else "local", sharing, generator)
    policy = Chain(actor, critic)
    schema = Schema.from_team(env.team).extended(**actor.fields(), **critic.fields())
    workspace = Workspace(schema, time=time, envs=envs)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(envs)
    chain = Chain(env, policy)
    act(chain, workspace, 0, time, generator=generator)
    assert workspace["start"][1:].any() or time < 3, "a window without resets tests nothing"
    return chain, workspace


@pytest.mark.parametrize(
    ("world", "sharing", "network"),
    crossed([*WORLDS], ["shared", "group", "agent"], [*NETWORKS])
    + crossed(["dying", "continuous", "unequal"], ["shared", "group", "agent"], [*BLOCKS][:3])
    + crossed(["dying", "continuous"], ["shared", "group"], [*BLOCKS][3:]),
)
def test_sequence_is_the_loop_of_step_and_of_what_acted(world: str, sharing: str, network: str) -> None:
    chain, workspace = recorded(WORLDS[world], {**NETWORKS, **BLOCKS}[network], sharing)
    choice = chain.members[0].members[0].choice
    whole = replay(chain, workspace, given=(choice,))
    loop = replay(chain, workspace, given=(choice,), stepwise=True)
    mask = workspace.mask
    for name in ("log_prob", "entropy", "value"):
        assert torch.allclose(whole[name][mask], loop[name][mask], atol=1e-5), name
        if name in workspace:  # entropies are scores alone
            assert torch.allclose(whole[name][mask], workspace[name][mask], atol=1e-5), name


@pytest.mark.parametrize("world", [WORLDS["dying"], WORLDS["continuous"]], ids=["dying", "continuous"])
@pytest.mark.parametrize("network", REMEMBERING)
def test_memory_after_the_window_agrees_too(world: World, network: str) -> None:
    chain, workspace = recorded(world, REMEMBERING[network])
    names = chain.reads
    inputs = {name: workspace[name][: workspace.time] for name in names}
    choice = chain.members[0].members[0].choice
    inputs[choice] = workspace[choice]
    _, after = chain.sequence(inputs, workspace.memory, workspace["start"][: workspace.time])
    _, looped = TemporalModule.sequence(chain, inputs, workspace.memory, workspace["start"][: workspace.time])
    pairs = list(zip(leaves(after), leaves(looped), strict=True))
    assert len(pairs) == (4 if network.startswith("attention") else 2)
    for (path, one), (_, other) in pairs:
        assert one.float().abs().sum() > 0
        assert torch.allclose(one.float(), other.float(), atol=1e-5), path


@pytest.mark.parametrize("network", REMEMBERING)
def test_two_halves_are_the_whole(network: str) -> None:
    chain, workspace = recorded(WORLDS["discrete"], REMEMBERING[network])
    inputs = {name: workspace[name][: workspace.time] for name in (*chain.reads, "action")}
    start = workspace["start"][: workspace.time]
    whole, _ = chain.sequence(inputs, workspace.memory, start)
    first, memory = chain.sequence({k: v[:5] for k, v in inputs.items()}, workspace.memory, start[:5])
    # Between windows the collector does what `act` does: memory is cleared where the next step opens an episode.
    second, _ = chain.sequence({k: v[5:] for k, v in inputs.items()}, memory, start[5:])
    for name, value in whole.items():
        assert torch.allclose(value, torch.cat([first[name], second[name]]), atol=1e-5), name


@pytest.mark.parametrize("network", REMEMBERING)
def test_memory_matters_and_stays_inside_its_episode(network: str) -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6), REMEMBERING[network])
    before = replay(chain, workspace, given=("action",))["value"]
    workspace["obs"][0] += 1.0
    after = replay(chain, workspace, given=("action",))["value"]
    assert not torch.allclose(before[4:6], after[4:6]), "the end of the first episode must know its beginning"
    assert torch.equal(before[6:], after[6:]), "the second episode must know nothing of the first"


@pytest.mark.parametrize("network", REMEMBERING)
def test_newcomer_has_fresh_memory(network: str) -> None:
    generator = torch.Generator().manual_seed(0)
    team = World(agents=2).team
    policy = Policy(team, REMEMBERING[network], "shared", generator)
    with torch.no_grad():
        policy.head.weight.mul_(100)
    obs, mask = torch.randn(3, 1, 2, 6), torch.tensor([[[True, True]], [[True, False]], [[True, True]]])
    inputs = {"obs": obs, "agent_mask": mask, "action": torch.zeros(3, 1, 2, dtype=torch.int64)}
    start = torch.zeros(3, 1, dtype=torch.bool)
    out, _ = policy.sequence(inputs, policy.initial_memory(1), start)
    alone, _ = policy.step({name: each[2] for name, each in inputs.items()}, policy.initial_memory(1))
    assert torch.allclose(out["entropy"][2, 0, 1], alone["entropy"][0, 1], atol=1e-6)
    assert not torch.allclose(out["entropy"][2, 0, 0], alone["entropy"][0, 0], atol=1e-6)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_only_legal_actions_are_drawn(world: World) -> None:
    _, workspace = recorded(world, NETWORKS["mlp"], time=30)
    team, action = world.team, workspace["action"]
    if world.kind == "continuous":
        low, high = team.bounds
        assert ((action >= low) & (action <= high)).all()
        return
    if world.kind == "multi":
        sizes = torch.tensor([[*sizes, *[1] * (3 - len(sizes))] for sizes in team.action_sizes])
        assert (action < sizes).all() and (action >= 0).all()
    else:
        legal = team.legal_actions.expand(*action.shape, -1)
        if world.has_masks:
            legal = legal & workspace["action_mask"][:-1]
        assert legal.gather(-1, action[..., None]).all()
    assert torch.isfinite(workspace["log_prob"]).all()


def test_greedy_is_a_function_and_draws_repeat() -> None:
    env = BatchedEnv(World(), 4)
    policy = Policy(env.team, NETWORKS["mlp"], "shared", torch.Generator().manual_seed(0))

    def actions(generator: torch.Generator | None) -> Tensor:
        workspace = Workspace(Schema.from_team(env.team).extended(**policy.fields()), time=5, envs=4)
        first = env.reset(1)
        workspace.write(0, {**first.seen, "start": first.start})
        act(Chain(env, policy), workspace, 0, 5, generator=generator)
        return workspace["action"].clone()

    assert torch.equal(actions(None), actions(None))
    assert torch.equal(actions(torch.Generator().manual_seed(1)), actions(torch.Generator().manual_seed(1)))
    assert not torch.equal(actions(torch.Generator().manual_seed(1)), actions(torch.Generator().manual_seed(2)))


def test_hooks_fire_once_a_step_and_once_a_replay() -> None:
    chain, workspace = recorded(WORLDS["discrete"], NETWORKS["mlp"], time=6)
    calls: list[str] = []
    chain.members[0].members[1].register_forward_hook(lambda *_: calls.append("critic"))
    act(chain, workspace, 0, 6)
    assert len(calls) == 6
    replay(chain, workspace, given=("action",))
    assert len(calls) == 7


COMPILED = """
import torch
from martes.networks import Network, Policy
from tests.worlds import World
world = World(has_masks=True)
inputs = {
    "obs": torch.randn(2, 3, 6),
    "agent_mask": torch.ones(2, 3, dtype=torch.bool),
    "action_mask": torch.ones(2, 3, 5, dtype=torch.bool),
    "noise": torch.randn(2, 3, 5),
}
for kind in ("gru", "attention", "retention"):
    policy = Policy(world.team, Network(memory=kind), "group", torch.Generator().manual_seed(0))
    memory = policy.initial_memory(2)
    compiled = torch.compile(policy.step, fullgraph=True, backend="eager")
    assert torch.equal(compiled(inputs, memory)[0]["action"], policy.step(inputs, memory)[0]["action"])
"""


def test_step_compiles_as_one_graph() -> None:
    # In a process of its own: here every call is checked at run time, which a graph cannot hold.
    subprocess.run([sys.executable, "-c", COMPILED], check=True)


def test_modules_are_reentrant_from_threads() -> None:
    chain, workspace = recorded(WORLDS["discrete"], NETWORKS["gru"])
    alone = replay(chain, workspace, given=("action",))["value"]
    results: list[Tensor] = []

    def replayed() -> None:
        results.append(replay(chain, workspace, given=("action",))["value"])

    threads = [threading.Thread(target=replayed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(alone, each) for each in results)


class Writer(TemporalModule):
    def __init__(self, reads: tuple[str, ...], writes: tuple[str, ...]) -> None:
        super().__init__()
        self.reads, self.writes = reads, writes

    def step(self, inputs, memory):
        return {name: inputs["obs"].sum(-1) for name in self.writes}, memory


def test_chain_refuses_what_cannot_run() -> None:
    with pytest.raises(DataError, match="two writers of 'q'"):
        Chain(Writer((), ("q",)), Writer((), ("q",)))
    with pytest.raises(DataError, match="reads 'q', which Writer writes after"):
        Chain(Writer(("q",), ()), Writer((), ("q",)))
    env = BatchedEnv(World(), 2)
    with pytest.raises(DataError, match="one environment"):
        Chain(env, env)
    policy = Policy(env.team, NETWORKS["mlp"], "shared", torch.Generator())
    workspace = Workspace(Schema.from_team(env.team), time=2, envs=2)
    with pytest.raises(DataError, match=r"Policy need.* 'log_prob'"):
        act(Chain(env, policy), workspace, 0, 2)
    with pytest.raises(DataError, match="needs an environment"):
        act(Chain(policy), workspace, 0, 2)
    with pytest.raises(DataError, match="no member of this chain writes a value"):
        Chain(policy).value({}, ())


def test_part_for_action_leaves_the_critic_out() -> None:
    generator = torch.Generator()
    team = TeamSpec.of_agents({"a_0": Vector(3)}, {"a_0": Discrete(2)})
    policy, critic = Policy(team, Network(), "shared", generator), Critic(team, Network(), "local", "shared", generator)
    part = Chain(policy, critic).part_for("action")
    assert list(part.members) == [policy]


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_continuous_action_is_scored_even_where_its_sample_was_not_recorded(stepwise: bool) -> None:
    chain, workspace = recorded(WORLDS["continuous"], NETWORKS["gru"])
    told = replay(chain, workspace, given=("action",), stepwise=stepwise)
    inside = workspace["sample"].abs().amax(-1) < 3
    assert inside.float().mean() > 0.5
    assert torch.allclose(told["log_prob"][inside], workspace["log_prob"][inside], atol=0.01)
    assert torch.equal(told["action"], workspace["action"])


class Counted(TemporalModule):
    """Writes how many steps it has seen in this episode, times what is seen."""

    reads, writes = ("obs",), ("feature",)

    def initial_memory(self, envs: int) -> Tensor:
        return torch.zeros(envs, 1)

    def step(self, inputs, memory):
        return {"feature": inputs["obs"].sum(-1) * (memory + 1)}, memory + 1


class Valued(TemporalModule):
    """A critic of what another module has made."""

    reads, writes = ("feature",), ("value",)

    def step(self, inputs, memory):
        return {"value": 2 * inputs["feature"]}, memory

    def value(self, inputs, memory):
        return self.step(inputs, memory)[0]["value"]


def test_a_value_sees_what_earlier_members_make_of_the_step() -> None:
    seen = {"obs": torch.full((2, 3, 1), 5.0)}
    chain = Chain(Counted(), Valued())
    _, memory = chain.step(seen, chain.initial_memory(2))
    assert chain.value(seen, memory).tolist() == [[20.0] * 3] * 2
    _, after = chain.step(seen, memory)
    assert chain.value(seen, after).tolist() == [[30.0] * 3] * 2


class Goal(TemporalModule):
    """Adds a constant of the environment to what is seen."""

    reads, writes = ("obs", "goal"), ("sum",)

    def step(self, inputs, memory):
        return {"sum": inputs["obs"].sum(-1) + inputs["goal"]}, memory


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_constant_is_the_same_at_every_step_of_a_replay(stepwise: bool) -> None:
    team = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(1)}, {"a": Discrete(2)})
    schema = Schema.from_team(team).extended(goal=Field(axes="env agent"), sum=Field())
    workspace = Workspace(schema, time=2, envs=3)
    workspace["goal"] = torch.arange(6.0).view(3, 2)
    workspace["obs"] = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 1)
    told = replay(Goal(), workspace, stepwise=stepwise)["sum"]
    assert told.tolist() == [[[0, 1], [2, 3], [4, 5]], [[1, 2], [3, 4], [5, 6]]]
