"""A learned environment: an exact model gives the true record; a fitted one comes near; its ends are ends."""

import pytest
import torch
from torch import Tensor

from martes.data import Discrete, Schema, TeamSpec, Vector, VectorEnv, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.envs.batched.memory import MemoryCue
from martes.envs.batched.pendulum import Pendulum
from martes.errors import ConfigError, DataError, EnvError
from martes.networks import Chain, Network, Policy, TemporalModule, act
from martes.networks.imagination import Dynamics, Imagined
from martes.networks.tape import taped
from martes.training import checkpoint
from tests.worlds import World

PLAIN = Network(hidden=(16,))


def recorded(env: VectorEnv, policy: Policy, time: int, seed: int = 0) -> Workspace:
    workspace = Workspace(Schema.from_team(env.team).extended(**policy.fields()), time=time, envs=env.num_envs)
    first = env.reset(seed)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(env.num_envs)
    act(Chain(env, policy), workspace, 0, time, generator=torch.Generator().manual_seed(7))
    return workspace


class Exact(TemporalModule):
    """The pendulum itself, from what is seen of it."""

    reads, writes = ("obs", "action"), ("next_obs", "reward")

    def step(self, inputs, memory):
        game, obs = Pendulum(), inputs["obs"]
        state = {"angle": torch.atan2(obs[..., 1], obs[..., 0]), "speed": obs[..., 2]}
        outcome = game.advance(state, inputs["action"], torch.Generator())
        return {"next_obs": game.observe(outcome.state)["obs"], "reward": outcome.reward}, memory


def test_an_exact_model_gives_the_record_of_the_true_environment():
    env = BatchedEnv(Pendulum(steps=40), 5)
    policy = Policy(env.team, PLAIN, "shared", torch.Generator().manual_seed(1))
    true = recorded(env, policy, 30)
    imagined = Imagined(Exact(), env.team, {"obs": true["obs"][0].clone()}, 5)
    dreamt = recorded(imagined, policy, 30)
    for name in ("obs", "action", "reward", "discount", "cut", "start", "log_prob", "agent_mask"):
        assert torch.allclose(dreamt[name].float(), true[name].float(), atol=2e-3), name
    assert true["reward"].std() > 1


class Counting(TemporalModule):
    """Sees how long it lives: dies of it at three; remembers, in memory, how often it acted."""

    reads, writes = ("obs", "action"), ("next_obs", "reward", "discount")

    def initial_memory(self, envs: int) -> Tensor:
        return torch.zeros(envs, 1)

    def step(self, inputs, memory):
        after = inputs["obs"] + 1
        over = (after >= 3).squeeze(-1)
        return {"next_obs": after, "reward": memory, "discount": (~over).float()}, memory + 1


TEAM = TeamSpec.of_agents({"a_0": Vector(1)}, {"a_0": Discrete(2)})


def test_ends_are_ends_and_memory_begins_anew():
    env = Imagined(Counting(), TEAM, {"obs": torch.tensor([[[0.0]], [[1.0]]])}, 2)
    first = env.reset(0)
    assert first.start.all() and first.seen["obs"].flatten().tolist() == [0, 1]
    steps = [env.step(torch.zeros(2, 1, dtype=torch.int64)) for _ in range(3)]
    assert [step.cut.tolist() for step in steps][:2] == [[False, False], [False, True]]
    assert steps[1].final is not None and steps[1].final["obs"].flatten().tolist() == [2, 3]
    assert steps[1].discount.flatten().tolist() == [1, 0]
    assert steps[2].reward.flatten().tolist() == [2, 0], "the model's memory is cleared where an episode opens"


def test_a_limit_cuts_without_ending():
    env = Imagined(Counting(), TEAM, {"obs": torch.full((7, 1, 1), -9.0)}, 4, limit=2)
    env.reset(0)
    steps = [env.step(torch.zeros(4, 1, dtype=torch.int64)) for _ in range(4)]
    assert [bool(step.cut.all()) for step in steps] == [False, True, False, True]
    assert all((step.discount == 1).all() for step in steps)


def test_equal_seeds_give_equal_dreams_and_starts_are_drawn():
    env = Imagined(Counting(), TEAM, {"obs": torch.arange(9.0).view(9, 1, 1) - 9}, 4)
    one, two, three = (env.reset(seed).seen["obs"].flatten().tolist() for seed in (1, 1, 2))
    assert one == two != three


def test_a_dream_goes_on_where_it_was_saved(tmp_path):
    def dream() -> Imagined:
        return Imagined(Counting(), TEAM, {"obs": torch.arange(9.0).view(9, 1, 1) - 9}, 4, limit=5)

    env, action = dream(), torch.zeros(4, 1, dtype=torch.int64)
    assert isinstance(env, VectorEnv)
    env.reset(1)
    last = [env.step(action) for _ in range(7)][-1]
    twin = dream()
    shown = twin.load_state_dict(checkpoint.load(checkpoint.save(tmp_path, env.state_dict(), 1, 1)))  # pyright: ignore
    assert torch.equal(shown.seen["obs"], last.seen["obs"]) and torch.equal(shown.start, last.start)
    for _ in range(9):
        one, other = env.step(action), twin.step(action)
        assert torch.equal(one.seen["obs"], other.seen["obs"]) and torch.equal(one.reward, other.reward)
        assert torch.equal(one.cut, other.cut)
    with pytest.raises(EnvError, match="no state of 4 imagined"):
        twin.load_state_dict(env.state_dict() | {"elapsed": torch.zeros(3)})
    with pytest.raises(EnvError, match="not the state of imagined"):
        twin.load_state_dict({})
    with pytest.raises(EnvError, match="Counting imagines has no picture"):
        twin.render()
    twin.close()
    with pytest.raises(EnvError, match="reset"):
        twin.step(action)


def test_a_model_that_tells_too_little_is_refused():
    with pytest.raises(DataError, match="does not write 'next_state'"):
        Imagined(Counting(), TEAM, {"obs": torch.zeros(1, 1, 1), "state": torch.zeros(1, 2)}, 1)
    with pytest.raises(EnvError, match="reset"):
        Imagined(Counting(), TEAM, {"obs": torch.zeros(1, 1, 1)}, 1).step(torch.zeros(1, 1))
    with pytest.raises(ConfigError, match="vectors"):
        Dynamics(World(has_image=True).team, PLAIN, torch.Generator())


def test_a_fitted_model_knows_what_is_paid_and_when_it_ends():
    """In the memory cue the question is the last step, and what is seen next is a function of what is seen."""
    env = BatchedEnv(MemoryCue(agents=2, cues=2, delay=1), 64)
    policy = Policy(env.team, PLAIN, "shared", torch.Generator().manual_seed(1))
    model = Dynamics(env.team, Network(hidden=(32,), memory="gru", memory_size=16), torch.Generator().manual_seed(2))
    window = recorded(env, policy, 8)
    window.memory = model.initial_memory(64)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(200):
        loss, metrics = model.loss(window)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(float(each) < 0.1 for each in metrics.values()), metrics
    dream = Imagined(model, env.team, {"obs": window["obs"][0].clone()}, 64)
    with torch.no_grad():
        first = dream.reset(0)
        cue = first.seen["obs"][..., :2].argmax(-1)
        step = dream.step(torch.zeros(64, 2, dtype=torch.int64))
        assert not step.cut.any()
        step = dream.step(cue)
    assert step.cut.all()
    assert float(step.reward.mean()) > 0.7, "the right answer is paid"


@pytest.mark.parametrize("name", ["continuous", "masked"])
def test_both_faces_of_the_model_agree(name):
    world = World("continuous") if name == "continuous" else World(agents=2)
    env = BatchedEnv(world, 3)
    policy = Policy(env.team, PLAIN, "shared", torch.Generator().manual_seed(1))
    model = Dynamics(env.team, Network(hidden=(8,), memory="gru", memory_size=4), torch.Generator().manual_seed(2))
    torch.nn.init.normal_(model.head.weight)
    window = recorded(env, policy, 9)
    inputs = {each: window[each][:9] for each in model.reads}
    memory, start = model.initial_memory(3), window["start"][:9]
    whole, loop = model.sequence(inputs, memory, start)[0], TemporalModule.sequence(model, inputs, memory, start)[0]
    for each, value in whole.items():
        assert torch.allclose(value, loop[each], atol=1e-5), each


def test_windows_of_a_tape_let_go_of_what_the_model_remembers() -> None:
    team = Pendulum().team
    model = Dynamics(team, Network(hidden=(8,), memory="gru", memory_size=4), torch.Generator().manual_seed(0))
    policy = Policy(team, PLAIN, "shared", torch.Generator().manual_seed(1))
    imagined = Imagined(model, team, {"obs": torch.randn(5, 1, 3)}, 2, limit=50)
    schema, tape = Schema.from_team(team).extended(**policy.fields()), None
    for _ in range(2):
        last = imagined.reset(0) if tape is None else tape.last
        tape = taped(Chain(imagined, policy), schema, last, 3, memory=None if tape is None else tape.memory)
        tape.window["reward"].sum().backward()  # fails where it would go into the window before


def test_a_team_that_sees_several_things_is_imagined() -> None:
    class Still(TemporalModule):
        reads, writes = ("obs/near", "action"), ("next_obs/near", "next_obs/far", "reward")

        def step(self, inputs, memory):
            near = inputs["obs/near"] + 1
            return {"next_obs/near": near, "next_obs/far": -near, "reward": near.sum(-1)}, memory

    team = TeamSpec.of_agents({"a_0": {"near": Vector(2), "far": Vector(2)}}, {"a_0": Discrete(2)})
    imagined = Imagined(Still(), team, {"obs/near": torch.zeros(3, 1, 2), "obs/far": torch.zeros(3, 1, 2)}, 3, limit=9)
    assert imagined.reset(0).start.all()
    assert (imagined.step(torch.zeros(3, 1, dtype=torch.int64)).seen["obs/far"] == -1).all()
