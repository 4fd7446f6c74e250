"""Changes of what agents see and earn: the contract over every kind of world, numbers worked by hand, errors."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.data import Continuous, Discrete, Image, MultiDiscrete, TeamSpec, TimeStep, Vector, VectorEnv
from martes.envs.batched.engine import BatchedEnv, Outcome, State
from martes.envs.changes import SideBySide
from martes.envs.pace import drawn_actions
from martes.envs.wrappers import Wrap, wrapped
from martes.errors import ConfigError, EnvError
from martes.training import checkpoint
from tests.envs.contract import Promise, assert_same, check
from tests.worlds import WORLDS, World

ALL = Wrap(agent_id=True, last_action=True, team_reward="sum", reward_scale=2.0, flatten=True, frame_stack=2)
WRAPPED = [
    *((world, ALL) for world in WORLDS),
    ("dying", Wrap(frame_stack=3)),
    ("dying", Wrap(agent_id=True)),
    ("multi-discrete-masked", Wrap(last_action=True, team_reward="mean")),
    ("continuous", Wrap(last_action=True)),
    ("image", Wrap(frame_stack=3, last_action=True, agent_id=True)),
    ("image", Wrap(shrink=3, frame_stack=2)),
]


class Hiding(World):
    """A world as the contract wants it: the absent see zeros, and only actions that exist are legal."""

    def observe(self, state: State) -> dict[str, Tensor]:
        there, exists = state["alive"][..., None], self.team.legal_actions
        return super().observe({**state, "obs": state["obs"] * there, "mask": state["mask"] & exists})


def hiding(name: str) -> World:
    return Hiding(**vars(WORLDS[name]))


@pytest.mark.usefixtures("unchecked", "global_randomness_unused")
@pytest.mark.parametrize(("world", "wrap"), WRAPPED)
def test_the_contract_is_kept(world: str, wrap: Wrap):
    def make(copies: int, limit: int | None) -> VectorEnv:
        return wrapped(BatchedEnv(hiding(world), copies, limit=limit), wrap)

    check(Promise(make, tells_state=True, steps=25))


@pytest.mark.parametrize("world", WORLDS)
def test_shapes_are_checked_at_run_time(world: str):
    env = wrapped(BatchedEnv(WORLDS[world], 2), ALL)
    step, generator = env.reset(1), torch.Generator().manual_seed(1)
    for _ in range(12):
        step = env.step(drawn_actions(env.team, step, generator))


@dataclass(frozen=True)
class Pair:
    """A wide agent sees (10 t + 1, 10 t + 2), a thin one 10 t + 3, t steps into the episode; the wide one's action 2
    ends the game, its action 1 takes the thin one away for a step. They earn 1 and 3."""

    kind: str = "discrete"

    @property
    def team(self) -> TeamSpec:
        acts = {
            "discrete": {"wide_0": Discrete(3), "thin_0": Discrete(2)},
            "multi": {"wide_0": MultiDiscrete((2, 3)), "thin_0": MultiDiscrete((2,))},
            "continuous": {"wide_0": Continuous((-9.0,) * 2, (9.0,) * 2), "thin_0": Continuous((-9.0,), (9.0,))},
        }
        return TeamSpec.of_agents({"wide_0": Vector(2), "thin_0": Vector(1)}, acts[self.kind], episode_limit=9)

    def initial(self, envs: int, generator: torch.Generator) -> State:
        return {"t": torch.zeros(envs), "there": torch.ones(envs, 2, dtype=torch.bool)}

    def advance(self, state: State, action: Tensor, generator: torch.Generator) -> Outcome:
        first = action[:, 0] if action.ndim == 2 else action[:, 0, 0]
        there = torch.stack((torch.ones_like(first, dtype=torch.bool), first != 1), 1)
        reward = torch.tensor([1.0, 3.0]).expand(len(action), 2)
        return Outcome({"t": state["t"] + 1, "there": there}, reward, over=first == 2)

    def observe(self, state: State) -> dict[str, Tensor]:
        seen = torch.tensor([[1.0, 2.0], [3.0, 0.0]]) + 10 * state["t"][:, None, None] * torch.tensor([[1, 1], [1, 0]])
        return {"obs": seen * state["there"][..., None], "agent_mask": state["there"]}


def made(wrap: Wrap, kind: str = "discrete", copies: int = 1) -> VectorEnv:
    env = wrapped(BatchedEnv(Pair(kind), copies), wrap)
    env.reset(0)
    return env


def rows(fields: object, copy: int = 0) -> list[list[float]]:
    assert isinstance(fields, dict)
    return fields["obs"][copy].tolist()


def test_agent_ids_stand_behind_what_each_sees():
    env = made(Wrap(agent_id=True))
    assert env.team.observation == {"wide": Vector(4), "thin": Vector(3)}
    assert rows(env.reset(0).seen) == [[1, 2, 1, 0], [3, 0, 1, 0]]  # padding behind the thin one's number
    step = env.step(torch.tensor([[1, 0]]))
    assert rows(step.seen) == [[11, 12, 1, 0], [0, 0, 0, 0]]  # the absent have no number
    step = env.step(torch.tensor([[2, 0]]))
    assert step.final is not None
    assert rows(step.final) == [[21, 22, 1, 0], [23, 0, 1, 0]]
    assert rows(step.seen) == [[1, 2, 1, 0], [3, 0, 1, 0]]


def test_last_actions_are_those_of_the_running_episode():
    env = made(Wrap(last_action=True), copies=2)
    assert env.team.observation == {"wide": Vector(5), "thin": Vector(3)}
    first = env.reset(0)
    assert rows(first.seen) == [[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]]
    assert rows(env.step(torch.tensor([[0, 1], [0, 0]])).seen) == [[11, 12, 1, 0, 0], [13, 0, 1, 0, 0]]
    step = env.step(torch.tensor([[2, 1], [1, 1]]))
    assert step.final is not None
    assert rows(step.final) == [[21, 22, 0, 0, 1], [23, 0, 1, 0, 0]]  # `final` shows the last action of the old episode
    assert rows(step.seen) == rows(first.seen)  # and `seen` none of it
    assert rows(step.seen, 1) == rows(step.final, 1) == [[21, 22, 0, 1, 0], [0, 0, 0, 0, 0]]
    step = env.step(torch.tensor([[0, 0], [0, 1]]))
    assert rows(step.seen, 1) == [[31, 32, 1, 0, 0], [33, 0, 0, 0, 0]]  # who was away did nothing


def test_last_actions_of_several_choices_and_real_ones():
    multi = made(Wrap(last_action=True), "multi")
    assert multi.team.observation == {"wide": Vector(7), "thin": Vector(3)}
    step = multi.step(torch.tensor([[[0, 2], [1, 2]]]))
    assert rows(step.seen) == [[11, 12, 1, 0, 0, 0, 1], [13, 0, 1, 0, 0, 0, 0]]
    real = made(Wrap(last_action=True), "continuous")
    step = real.step(torch.tensor([[[0.5, -4.0], [7.0, 5.0]]]))
    assert rows(step.seen) == [[11, 12, 0.5, -4], [13, 7, 0, 0]]


def test_a_forced_action_is_what_was_executed():
    world = replace(WORLDS["forced"], ends=0.0)
    env = wrapped(BatchedEnv(world, 50), Wrap(last_action=True))
    step = env.reset(3)
    forced = step.seen["forced"]
    assert forced.any()
    assert not forced.all()
    executed = torch.where(forced, 0, 2)  # this world forces into the lowest action
    seen = env.step(torch.full((50, 3), 2)).seen["obs"][..., 6:]
    assert torch.equal(seen.argmax(-1), executed)


def test_frames_are_stacked_and_episodes_start_anew():
    env = made(Wrap(frame_stack=2), copies=2)
    assert env.team.observation == {"wide": Vector(4), "thin": Vector(2)}
    first = env.reset(0)
    assert rows(first.seen) == [[1, 2, 1, 2], [3, 3, 0, 0]]  # the first frame fills the places before it
    assert rows(env.step(torch.tensor([[0, 0], [1, 0]])).seen) == [[1, 2, 11, 12], [3, 13, 0, 0]]
    step = env.step(torch.tensor([[2, 0], [0, 0]]))
    assert step.final is not None
    assert rows(step.final) == [[11, 12, 21, 22], [13, 23, 0, 0]]
    assert rows(step.seen) == rows(first.seen)
    assert rows(step.seen, 1) == [[11, 12, 21, 22], [23, 23, 0, 0]]  # who was away starts anew
    assert rows(env.step(torch.tensor([[0, 0], [1, 0]])).seen, 1) == [[21, 22, 31, 32], [0, 0, 0, 0]]


def test_pictures_are_stacked_along_channels_and_flattened_as_shares():
    bare, world = BatchedEnv(WORLDS["image"], 2), WORLDS["image"]
    camera, vector = (bare.reset(4).seen[f"obs/{name}"] for name in ("camera", "vector"))
    stacked = wrapped(BatchedEnv(world, 2), Wrap(frame_stack=3))
    assert stacked.team.parts["obs/camera"] == Image((9, 8, 8))
    seen = stacked.reset(4).seen
    assert seen["obs/camera"].dtype == torch.uint8
    assert torch.equal(seen["obs/camera"], torch.cat([camera] * 3, 2))
    flat = wrapped(BatchedEnv(world, 2), Wrap(flatten=True))
    assert flat.team.observation == {"small": Vector(4 + 192), "big": Vector(6 + 192)}
    obs = flat.reset(4).seen["obs"]
    assert torch.equal(obs[:, 1], torch.cat((vector[:, 1], camera[:, 1].flatten(1) / 255), 1))
    assert torch.equal(obs[:, 0, :196], torch.cat((vector[:, 0, :4], camera[:, 0].flatten(1) / 255), 1))
    assert not obs[:, 0, 196:].any()


def test_features_beside_pictures_are_parts_of_their_own():
    env = wrapped(BatchedEnv(WORLDS["image"], 2), Wrap(agent_id=True, last_action=True))
    assert env.team.parts["obs/agent_id"] == Vector(3)
    step = env.reset(0)
    assert torch.equal(step.seen["obs/agent_id"], torch.eye(3).expand(2, 3, 3))
    assert step.seen["obs/last_action"].shape == (2, 3, 5)
    whole = TeamSpec(("a",), {"a": (0,)}, {"a": Image((1, 2, 2))}, {"a": Discrete(2)})
    from martes.envs.changes import agent_id

    change = agent_id(whole)
    assert change.team.observation == {"a": {"image": Image((1, 2, 2)), "agent_id": Vector(1)}}
    seen = {"obs": torch.ones(3, 1, 1, 2, 2, dtype=torch.uint8), "agent_mask": torch.ones(3, 1, dtype=torch.bool)}
    assert set(change.shown(seen, ())) == {"obs/image", "obs/agent_id", "agent_mask"}
    with pytest.raises(ConfigError, match=r"agent_id.*'a'"):
        agent_id(change.team)


@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (Wrap(team_reward="sum"), [4, 4]),
        (Wrap(team_reward="mean", reward_scale=0.5), [1, 1]),
        (Wrap(reward_scale=10.0), [10, 30]),
    ],
)
def test_rewards_are_shared_with_everybody_and_scaled(wrap: Wrap, expected: list[float]):
    env = made(wrap)
    assert env.step(torch.tensor([[1, 0]])).reward.tolist() == [expected]
    assert env.step(torch.tensor([[0, 0]])).reward.tolist() == [expected]  # the one who was away is paid, and counts


def test_wrapping_nothing_returns_the_environment_itself():
    env = BatchedEnv(Pair(), 1)
    assert wrapped(env, Wrap()) is env
    assert wrapped(env, Wrap(time_limit=3, against="random", against_agents=("thin_0",))) is env


def test_a_state_goes_through_a_checkpoint(tmp_path):
    env = wrapped(BatchedEnv(WORLDS["dying"], 3), ALL)
    generator = torch.Generator().manual_seed(0)
    step = env.reset(1)
    for _ in range(5):
        step = env.step(drawn_actions(env.team, step, generator))
    loaded = checkpoint.load(checkpoint.save(tmp_path, env.state_dict(), 1, keep=1))
    action = drawn_actions(env.team, step, generator)
    twin = wrapped(BatchedEnv(WORLDS["dying"], 3), ALL)
    twin.load_state_dict(loaded)
    assert_same(env.step(action), twin.step(action), "after a checkpoint")


def test_a_state_of_other_wrappers_is_refused():
    plain, stacked = BatchedEnv(Pair(), 1), made(Wrap(frame_stack=2))
    plain.reset(0)
    with pytest.raises(EnvError, match="'env'"):
        stacked.load_state_dict(plain.state_dict())
    with pytest.raises(EnvError, match=r"env\.wrap"):
        made(ALL).load_state_dict(stacked.state_dict())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"frame_stack": 0}, r"frame_stack is 0.*at least 1"),
        ({"shrink": 0}, r"shrink is 0.*at least 1"),
        ({"time_limit": 0}, r"time_limit is 0.*at least 1"),
        ({"reward_scale": 0.0}, r"reward_scale is 0\.0.*above 0"),
        ({"reward_scale": float("inf")}, r"reward_scale is inf"),
        ({"against_agents": ("a_0",)}, r"a_0.*env\.wrap\.against"),
        ({"against": "random"}, r"env\.wrap\.against_agents"),
        ({"against": "random", "against_agents": ("a_0", "a_0")}, r"twice"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict, told: str):
    with pytest.raises(ConfigError, match=told):
        Wrap(**values)


def test_smaller_pictures_are_means_of_blocks():
    plain, small = BatchedEnv(WORLDS["image"], 2), wrapped(BatchedEnv(WORLDS["image"], 2), Wrap(shrink=3))
    assert small.team.parts["obs/camera"].shape == (3, 2, 2), "8 pixels are two blocks, and two left out"
    whole, seen = (env.reset(4).seen for env in (plain, small))
    camera = whole["obs/camera"][..., :6, :6].double()
    by_hand = torch.stack(
        [torch.stack([camera[..., i : i + 3, j : j + 3].mean((-2, -1)) for j in (0, 3)], -1) for i in (0, 3)], -2
    )
    assert seen["obs/camera"].dtype == torch.uint8 == whole["obs/camera"].dtype
    assert (seen["obs/camera"].double() - by_hand).abs().max() <= 0.5
    assert torch.equal(seen["obs/vector"], whole["obs/vector"])


@pytest.mark.parametrize(
    ("world", "factor", "told"), [("discrete", 2, "sees no pictures"), ("image", 9, "more than the 8 x 8 pixels")]
)
def test_what_cannot_be_made_smaller_is_refused(world: str, factor: int, told: str):
    with pytest.raises(ConfigError, match=told):
        wrapped(BatchedEnv(WORLDS[world], 1), Wrap(shrink=factor))


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_team_reward_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        Wrap(team_reward="meen")


@given(
    st.integers(1, 4),
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_side_by_side_is_each_agents_true_vectors_joined(agents: int, widths: list[list[int]], padding: int):
    widths = [[1, *source][:agents] for source in widths]
    sources = [torch.rand(2, agents, max(source) + padding) for source in widths]
    joined = SideBySide([tuple(source) for source in widths])(*sources)
    for agent in range(agents):
        expected = torch.cat(
            [source[:, agent, : width[agent]] for source, width in zip(sources, widths, strict=True)], 1
        )
        assert torch.equal(joined[:, agent, : expected.shape[1]], expected)
        assert not joined[:, agent, expected.shape[1] :].any()


class Careless(BatchedEnv):
    """Its `final` says nothing of copies that play on."""

    def step(self, action: Tensor) -> TimeStep:
        step = super().step(action)
        cut = step.cut
        if step.final is not None:
            step.final = {name: value * cut.view(-1, *(1,) * (value.ndim - 1)) for name, value in step.final.items()}
        return step


@pytest.mark.parametrize("wrap", [Wrap(frame_stack=3), Wrap(last_action=True)])
def test_what_final_says_of_copies_that_play_on_is_not_remembered(wrap: Wrap):
    env, careless = wrapped(BatchedEnv(World(), 4), wrap), wrapped(Careless(World(), 4), wrap)
    step, generator, ended = env.reset(1), torch.Generator().manual_seed(1), 0
    careless.reset(1)
    for _ in range(20):
        action = drawn_actions(env.team, step, generator)
        step, other = env.step(action), careless.step(action)
        assert all(torch.equal(value, other.seen[name]) for name, value in step.seen.items())
        ended += int(step.cut.any() and not step.cut.all())
        if step.final is not None:
            assert torch.equal(step.final["obs"][step.cut], other.final["obs"][step.cut])
    assert ended
