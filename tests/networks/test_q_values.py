"""Values of actions: two faces that agree, legal choices of the promised law, and the last action as a memory."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from martes.data import Field, Schema, Workspace
from martes.data.trees import leaves
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.networks import Chain, Network, TemporalModule, act, replay
from martes.networks.q_values import LAST, AgentForm, Exploration, ValuePolicy, dueling
from tests.worlds import WORLDS, World, crossed

MLP = Network(hidden=(16, 16), layer_norm=True, agent_id=True)
GRU = Network(hidden=(16,), memory="gru", memory_size=12, activation="tanh")
FORMS = {
    "mlp": AgentForm(MLP, "group"),
    "gru": AgentForm(GRU, "agent", is_dueling=True),
    "mlp told": AgentForm(MLP, "agent", sees_last_action=True),
    "gru told": AgentForm(replace(GRU, normalise=True), "shared", sees_last_action=True, is_dueling=True),
}
CHOOSING = [name for name, world in WORLDS.items() if world.kind == "discrete"]
HALF = Exploration(start=0.5, end=0.5)


def recorded(
    world: World, form: AgentForm, exploration: Exploration = HALF, time: int = 12, envs: int = 4
) -> tuple[ValuePolicy, Workspace]:
    """A policy and a window in which it acted, its values written down."""
    generator = torch.Generator().manual_seed(7)
    env = BatchedEnv(world, envs)
    policy = ValuePolicy(env.team, form, exploration, generator)
    schema = Schema.from_team(env.team).extended(q=Field((env.team.legal_actions.shape[1],), writer="the policy"))
    workspace = Workspace(schema, time=time, envs=envs)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(envs)
    policy.writes = ("action", "q")
    act(Chain(env, policy), workspace, 0, time, generator=generator)
    assert workspace["start"][1:].any() or time < 3, "a window without resets tests nothing"
    return policy, workspace


@pytest.mark.parametrize(("world", "form", "sharing"), crossed(CHOOSING, [*FORMS], ["shared", "group", "agent"]))
def test_sequence_is_the_loop_of_step_and_of_what_acted(world: str, form: str, sharing: str) -> None:
    policy, workspace = recorded(WORLDS[world], replace(FORMS[form], sharing=sharing))  # pyright: ignore
    whole = replay(policy, workspace, given=("action",))
    loop = replay(policy, workspace, given=("action",), stepwise=True)
    mask = workspace.mask
    assert torch.equal(whole["action"], workspace["action"])
    assert torch.allclose(whole["q"][mask], workspace["q"][mask], atol=1e-5)
    for name in ("q", "features"):
        assert torch.allclose(whole[name][mask], loop[name][mask], atol=1e-5), name


@pytest.mark.parametrize("form", ["gru", "mlp told", "gru told"])
def test_memory_after_the_window_agrees_too(form: str) -> None:
    policy, workspace = recorded(WORLDS["dying"], FORMS[form], time=9)
    inputs = {name: workspace[name][:9] for name in (*policy.reads, "action")}
    _, after = policy.sequence(inputs, workspace.memory, workspace["start"][:9])
    _, looped = TemporalModule.sequence(policy, inputs, workspace.memory, workspace["start"][:9])
    pairs = list(zip(leaves(after), leaves(looped), strict=True))
    assert len(pairs) == 1 + (form == "gru told")
    for (path, one), (_, other) in pairs:
        assert torch.allclose(one, other, atol=1e-6), path


def test_without_choices_the_last_ones_are_still_those_made() -> None:
    policy, workspace = recorded(World(has_masks=True), FORMS["mlp told"], Exploration(start=0, end=0))
    free, told = replay(policy, workspace), replay(policy, workspace, given=("action",))
    assert torch.equal(free["action"], workspace["action"])
    assert torch.allclose(free["q"], told["q"], atol=1e-6)


def test_the_last_action_matters_to_the_next_step_of_its_episode_and_to_no_other() -> None:
    policy, workspace = recorded(World(ends=0.0, limit=6), FORMS["mlp told"])
    before = replay(policy, workspace, given=("action",))["q"]
    for changed, seen in ((2, True), (5, False)):  # the episode ends after step 5
        other = workspace["action"].clone()
        workspace["action"][changed] = (other[changed] + 1) % 5
        after = replay(policy, workspace, given=("action",))["q"]
        workspace["action"] = other
        is_same = (before == after).flatten(1).all(1)
        assert is_same.tolist() == [not (seen and step == changed + 1) for step in range(12)]


def test_who_was_absent_remembers_no_action() -> None:
    policy, workspace = recorded(WORLDS["dying"], FORMS["mlp told"], time=30)
    inputs = {name: workspace[name][:30] for name in (*policy.reads, "action")}
    _, memory = policy.sequence(inputs, workspace.memory, workspace["start"][:30])
    alive = workspace["agent_mask"][29]
    assert isinstance(memory, dict) and not alive.all()
    assert (memory[LAST][~alive] == -1).all()
    assert torch.equal(memory[LAST][alive], workspace["action"][29][alive])


def chosen(policy: ValuePolicy, inputs: dict[str, Tensor], draws: int) -> Tensor:
    """The draws [draw env agent] of one step."""
    envs = len(inputs["agent_mask"])
    generator, memory = torch.Generator().manual_seed(5), policy.initial_memory(envs)
    steps = (policy.step({**inputs, **policy.noise(envs, generator)}, memory) for _ in range(draws))
    return torch.stack([outputs["action"] for outputs, _ in steps])


@pytest.fixture
def step() -> tuple[ValuePolicy, dict[str, Tensor], Tensor]:
    """A policy, one masked step of two environments, and the values there."""
    world = WORLDS["unequal"]
    env = BatchedEnv(world, 2)
    policy = ValuePolicy(env.team, FORMS["mlp"], HALF, torch.Generator().manual_seed(7))
    inputs = dict(env.reset(1).seen)
    return policy, inputs, policy.step(inputs, ())[0]["q"].detach()


def law(policy: ValuePolicy, inputs: dict[str, Tensor], q: Tensor) -> Tensor:
    """The promised probability of each action."""
    legal = inputs["action_mask"] & policy.legal
    if policy.exploration.kind == "softmax":
        return (q / policy.rate).masked_fill(~legal, -torch.inf).softmax(-1)
    best = torch.nn.functional.one_hot(q.masked_fill(~legal, -torch.inf).argmax(-1), legal.shape[-1])
    return (1 - policy.rate) * best + policy.rate * legal / legal.sum(-1, keepdim=True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "rate"), [("epsilon", 0.3), ("epsilon", 1.0), ("softmax", 0.5), ("softmax", 2.0)])
def test_draws_follow_the_promised_law(kind: str, rate: float, step: tuple[ValuePolicy, dict[str, Tensor], Tensor]):
    policy, inputs, q = step
    policy.exploration, policy.rate = Exploration(kind, start=1.0), rate  # pyright: ignore
    draws = 4000
    counts = torch.nn.functional.one_hot(chosen(policy, inputs, draws), q.shape[-1]).double().mean(0)
    expected = law(policy, inputs, q).double()
    assert (counts[expected == 0] == 0).all(), "an illegal or padded action was drawn"
    deviation = (expected * (1 - expected) / draws).sqrt()
    assert ((counts - expected).abs() <= 4.5 * deviation + 1e-9).all()


def test_without_noise_the_best_legal_action_is_taken(step: tuple[ValuePolicy, dict[str, Tensor], Tensor]) -> None:
    policy, inputs, q = step
    legal = inputs["action_mask"] & policy.legal
    assert not torch.equal(q.argmax(-1), q.masked_fill(~legal, -1e9).argmax(-1)), "the mask decides nothing here"
    assert torch.equal(policy.step(inputs, ())[0]["action"], q.masked_fill(~legal, -1e9).argmax(-1))


def test_what_the_environment_does_in_an_agents_place_is_the_choice() -> None:
    _, workspace = recorded(WORLDS["forced"], FORMS["mlp"])
    forced = workspace["forced"][:12]
    assert forced.any() and not forced.all()
    assert torch.equal(workspace["action"][forced], workspace["forced_action"][:12][forced])


def test_evaluations_depart_at_their_own_rate_and_leave_trainings_alone() -> None:
    policy, workspace = recorded(World(), FORMS["gru"], Exploration(start=1.0, test=0.25))
    tested = policy.part_for("action")
    assert (policy.rate, tested.rate) == (1.0, 0.25)
    assert all(one is other for one, other in zip(policy.parameters(), tested.parameters(), strict=True))
    inputs = {name: workspace[name][0] for name in policy.reads}
    noise = tested.noise(1000, torch.Generator().manual_seed(0))
    assert noise["explores"].float().mean().item() == pytest.approx(0.25, abs=0.03)
    greedy = policy.part_for("action").step(inputs, policy.initial_memory(4))[0]["action"]
    assert torch.equal(greedy, policy.step(inputs, policy.initial_memory(4))[0]["action"])


def test_acting_keeps_no_graph() -> None:
    policy, workspace = recorded(World(), FORMS["gru told"])
    env = BatchedEnv(World(), 4)
    env.reset(0)
    memory = act(Chain(env, policy), workspace, 0, 3)
    assert len(list(leaves(memory))) == 2
    assert all(leaf.grad_fn is None and not leaf.requires_grad for _, leaf in leaves(memory))


def test_dueling_by_hand() -> None:
    value, advantage = torch.tensor([[10.0]]), torch.tensor([[1.0, 3.0, 100.0]])
    exists = torch.tensor([[True, True, False]])
    assert dueling(value, advantage, exists).tolist() == [[9.0, 11.0, 108.0]]


def test_unrolled_values_what_followed_the_last_step() -> None:
    policy, workspace = recorded(World(ends=0.0, limit=3), FORMS["gru told"], time=5)
    whole = policy.unrolled(workspace)["q"]
    _, memory = policy.sequence(
        {name: workspace[name][:5] for name in (*policy.reads, "action")},
        policy.initial_memory(4),
        workspace["start"][:5],
    )
    last, _ = policy.step({name: workspace[name][5] for name in policy.reads}, memory)
    assert whole.shape[0] == 6
    assert torch.allclose(whole[5], last["q"], atol=1e-6)


@pytest.mark.parametrize(("kind", "told"), [("continuous", "Continuous"), ("multi", "MultiDiscrete")])
def test_other_kinds_of_action_are_refused(kind: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"one value an action .*not discrete.*{told}.*take a policy-gradient"):
        ValuePolicy(World(kind).team, FORMS["mlp"], HALF, torch.Generator())  # pyright: ignore


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"start": 1.5}, r"exploration.start is 1.5: .*between 0 and 1"),
        ({"end": -0.1}, "exploration.end is -0.1"),
        ({"kind": "softmax", "test": -1.0}, "exploration.test is -1.0"),
        ({"steps": 0}, "steps is 0"),
        ({"decay": "exponential", "end": 0.0}, "end is 0.0; it must be positive"),
    ],
)
def test_impossible_explorations_are_refused(wrong: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Exploration(**wrong)


def test_exploration_falls_with_environment_steps() -> None:
    assert [Exploration(steps=100).rate(step) for step in (0, 50, 100, 10**6)] == [1.0, 0.525, 0.05, 0.05]
    falls = Exploration(steps=100, end=0.01, decay="exponential").rate
    assert [falls(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.1, 0.01])


def test_statistics_of_what_is_seen_leave_the_last_action_as_it_is() -> None:
    told: list[Tensor] = []
    form = AgentForm(Network(hidden=(8,), normalise=True), sees_last_action=True)
    policy = ValuePolicy(World().team, form, HALF, torch.Generator().manual_seed(0))
    policy.body.layers[0].register_forward_pre_hook(lambda _, given: told.append(given[0]))
    there = torch.ones(5, 3, dtype=torch.bool)
    seen = {"obs": 7 + 3 * torch.randn(5, 3, 6), "agent_mask": there}
    schema = Schema.from_team(World().team).extended(counted=Field((), torch.bool, "time env"))
    batch = Workspace(schema, time=1, envs=5)
    batch.write(0, {**seen, "action": torch.zeros(5, 3, dtype=torch.int64), "counted": there[:, 0]})
    policy.observe(batch)
    last = torch.randint(5, (5, 3))
    policy.step(seen, {"hidden": (), LAST: last})
    codes, obs = told[0].view(5, 3, -1).split((5, 6), -1)
    assert torch.equal(codes.argmax(-1), last) and torch.equal(codes.sum(-1), torch.ones(5, 3))
    assert abs(obs.mean()) < 1e-5 and abs(obs.std() - 1) < 0.1
