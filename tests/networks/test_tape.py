"""Acting on the tape: the record of `act`, with its gradient through policy, memory and environment."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from martes.data import Schema, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.envs.batched.pendulum import Pendulum
from martes.errors import DataError
from martes.networks import Chain, Network, Policy, TemporalModule, act
from martes.networks.tape import Tape, taped

GRU = Network(hidden=(8,), memory="gru", memory_size=6, activation="tanh")


@pytest.fixture
def in_doubles() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def swinging(network: Network, steps: int, copies: int = 3) -> tuple[Policy, BatchedEnv]:
    env = BatchedEnv(Pendulum(steps=5), copies)
    policy = Policy(env.team, network, "shared", torch.Generator().manual_seed(1))
    nn.init.normal_(policy.head.weight, std=0.3, generator=torch.Generator().manual_seed(2))
    return policy, env


def rolled(policy: Policy, env: BatchedEnv, steps: int) -> Tape:
    schema = Schema.from_team(env.team).extended(**policy.fields())
    return taped(Chain(env, policy), schema, env.reset(4), steps, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("network", [GRU, Network(hidden=(8,))], ids=["gru", "mlp"])
def test_the_tape_holds_what_act_records(network):
    policy, env = swinging(network, 8)
    tape = rolled(policy, env, 8)
    workspace = Workspace(tape.window.schema, time=8, envs=3)
    first = env.reset(4)
    workspace.write(0, {**first.seen, "start": first.start})
    workspace.memory = policy.initial_memory(3)
    memory = act(Chain(env, policy), workspace, 0, 8, generator=torch.Generator().manual_seed(5))
    assert workspace["cut"].any()
    for name in workspace.names:
        assert torch.equal(workspace[name], tape.window[name].detach()), name
    assert torch.equal(workspace.mask, tape.window.mask)
    if network is GRU:
        assert torch.equal(memory, tape.memory)
    assert tape.window["reward"].requires_grad and not workspace["reward"].requires_grad


class Torque(TemporalModule):
    """A torque from what it sees and remembers, in whatever precision the weights have."""

    reads, writes = ("obs",), ("action",)

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 4), nn.Linear(4, 1)

    def initial_memory(self, envs: int) -> torch.Tensor:
        return torch.zeros(envs, 4)

    def step(self, inputs, memory):
        after = self.cell(inputs["obs"][:, 0], memory)
        return {"action": 2 * self.head(after).tanh().unsqueeze(1)}, after


def test_the_gradient_through_time_is_that_of_finite_differences(in_doubles, unchecked):
    env, policy = BatchedEnv(Pendulum(steps=12), 3), Torque()  # the window reaches over a reset

    def paid() -> torch.Tensor:
        return taped(Chain(env, policy), Schema.from_team(env.team), env.reset(4), 20).window["reward"].sum()

    paid().backward()
    width = 1e-6
    for name, parameter in policy.named_parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad
        assert gradient is not None and gradient.abs().sum() > 0, name
        for index in range(0, len(flat), max(1, len(flat) // 3)):
            sides = []
            for side in (width, -2 * width):
                flat[index] += side
                with torch.no_grad():
                    sides.append(paid())
            flat[index] += width
            slope = (sides[0] - sides[1]) / (2 * width)
            assert float(gradient.view(-1)[index]) == pytest.approx(float(slope), rel=1e-3, abs=1e-5), name


def test_windows_follow_each_other_and_let_go_of_the_past():
    policy, env = swinging(GRU, 8)
    schema = Schema.from_team(env.team).extended(**policy.fields())
    whole = rolled(policy, env, 4)
    chain, draws = Chain(env, policy), torch.Generator().manual_seed(5)
    first = taped(chain, schema, env.reset(4), 2, generator=draws)
    first.window["reward"].sum().backward()
    second = taped(chain, schema, first.last, 2, memory=first.memory, generator=draws)
    second.window["reward"].sum().backward()  # the first graph is gone
    both = torch.cat((first.window["reward"], second.window["reward"]))
    assert torch.equal(both, whole.window["reward"])


class Careless(TemporalModule):
    """Hands out one tensor again and again, and changes it in place."""

    reads, writes = ("obs",), ("action",)

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(3, 1, 1)

    def step(self, inputs, memory):
        self.kept += 1
        return {"action": self.kept}, memory


def test_what_is_changed_in_place_is_refused():
    _, env = swinging(GRU, 3)
    schema = Schema.from_team(env.team)
    with pytest.raises(DataError, match=r"'action' was changed in place.*the policy"):
        taped(Chain(env, Careless()), schema, env.reset(0), 3)


def test_what_is_missing_or_misshapen_is_told():
    policy, env = swinging(GRU, 3)

    class Deaf(Careless):
        reads = ("state",)

        def step(self, inputs, memory):
            return {"action": torch.zeros(3, 1, 1)}, memory

    class Wide(Deaf):
        reads = ("obs",)

        def step(self, inputs, memory):
            return {"action": torch.zeros(3, 1, 1), "more": torch.zeros(3, 1)}, memory

    with pytest.raises(DataError, match=r"reads 'state', which the environment does not write: .*obs"):
        taped(Chain(env, Deaf()), Schema.from_team(env.team), env.reset(0), 2)
    with pytest.raises(DataError, match="needs an environment"):
        taped(Chain(policy), Schema.from_team(env.team), env.reset(0), 2)
