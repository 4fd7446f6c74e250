"""Gradient steps, by hand and compiled."""

import pickle
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from martes.algorithms.descent import Descent, Stepped
from martes.algorithms.learner import Metrics
from martes.data import Schema, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError, NonFiniteError
from tests.algorithms.q_learners import QUICK
from tests.worlds import World

BATCH = Workspace(Schema({}, 1), time=1, envs=1)


def two_slots() -> tuple[nn.ParameterList, nn.ParameterList]:
    """Parameters of two modules; the slot axis comes first."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator))

    return nn.ParameterList([drawn(2, 3), drawn(2, 2, 2)]), nn.ParameterList([drawn(1, 4)])


def begun(max_norm: float | None = 0.5) -> tuple[Descent, list[nn.Parameter]]:
    """Plain gradient descent down sum(scale * parameter^2), in two parts; one parameter is not asked."""
    first, second = two_slots()
    unasked = nn.Parameter(torch.ones(1, 2))
    parameters = [*first, *second]

    def loss(batch: Workspace, scale: float) -> tuple[Tensor, Metrics, Tensor]:
        total = scale * torch.stack([each.square().sum() for each in parameters]).sum()
        return total, {"loss": total}, torch.tensor([scale])

    optimiser = torch.optim.SGD([*parameters, unasked], lr=1.0)
    parts: dict[str, tuple[nn.Module, int]] = {"first": (first, 2), "second": (nn.ParameterList([*second, unasked]), 1)}
    return Descent(loss, optimiser, parts, max_norm), [*parameters, unasked]


def norm(*gradients: Tensor) -> Tensor:
    return torch.cat([each.flatten() for each in gradients]).norm()


def test_a_step_goes_down_the_gradient_each_slot_cut_alone() -> None:
    descent, parameters = begun()
    before = [each.detach().clone() for each in parameters]
    found = descent(BATCH, 3.0)
    gradients = [6 * each for each in before]
    slots = [norm(*(each[slot] for each in gradients[:2])) for slot in range(2)]
    assert torch.allclose(found.norms["first"], torch.stack(slots))
    assert torch.allclose(found.norms["second"], norm(gradients[2]).reshape(1)), "who is not asked has no gradient"
    assert found.watched["first_grad_norm"] == max(slots)
    scales = [torch.stack([0.5 / each for each in slots]), torch.stack([0.5 / norm(gradients[2])])]
    for place, scale in ((0, scales[0][:, None]), (1, scales[0][:, None, None]), (2, scales[1][:, None])):
        assert torch.allclose(parameters[place], before[place] - scale * gradients[place], atol=1e-5)
    assert torch.equal(parameters[3], before[3])
    assert found.told is not None and found.told.tolist() == [3.0]


def test_pieces_are_summed_before_they_are_cut() -> None:
    (whole, one), (apart, other) = begun(), begun()
    assert isinstance(whole(BATCH, 3.0), Stepped)
    found = apart.summed([(BATCH, 0.5), (BATCH, 2.0), (BATCH, 0.5)], BATCH)
    for parameter, same in zip(one, other, strict=True):
        assert torch.allclose(parameter, same, atol=1e-6)
    total = sum(each.square().sum() for each in begun()[1][:3])
    assert torch.allclose(found.metrics["loss"], 3 * total)


@pytest.mark.parametrize("scale", [torch.nan, torch.inf])
def test_nothing_moves_where_something_is_not_finite(scale: float) -> None:
    descent, parameters = begun()
    before = [each.detach().clone() for each in parameters]
    with pytest.raises(NonFiniteError, match="not finite") as raised:
        descent(BATCH, scale)
    assert raised.value.batch is BATCH
    assert all(map(torch.equal, parameters, before))


def test_what_is_frozen_stays() -> None:
    descent, parameters = begun(max_norm=None)
    parameters[1].requires_grad_(False)
    before = [each.detach().clone() for each in parameters]
    descent(BATCH, 0.25)
    assert torch.equal(parameters[1], before[1])
    assert torch.allclose(parameters[0], 0.5 * before[0])


COMPILED = """
import torch
from dataclasses import replace
from torch._dynamo.utils import counters
from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.algorithms.soft_actor_critic import SAC
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.training.collect import Collector
from tests.worlds import WORLDS, World

small = dict(network=Network(hidden=(8,), layer_norm=True), rollout=16)
drawn = dict(small, ratio=1.0, batch=8, warmup=0)
config, world = {case}
moved = []
for compile in (False, True):
    env = BatchedEnv(world, 3)
    learner = replace(config, compile=compile).learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    learner.experience.add(collector.collect(), collector.final)
    for place, batch in enumerate(learner.experience.due(48)):
        metrics = learner.update(batch)
        if place == 5:
            break
    moved.append(([p.detach() for p in learner.policy.parameters()], metrics))
assert not counters["graph_break"], counters["graph_break"]
assert len(moved[0][1]) == len(moved[1][1]) > 3
for one, other in zip(moved[0][0], moved[1][0], strict=True):
    assert torch.allclose(one, other, atol=1e-4)
for name, metric in moved[0][1].items():
    assert torch.allclose(metric, moved[1][1][name], atol=1e-3), name
"""


@pytest.mark.parametrize(
    "case",
    [
        'PPO(**small, epochs=2, minibatches=1), WORLDS["dying"]',
        'PPO(**small, epochs=2, minibatches=1, accumulate=2), WORLDS["masked"]',
        'MADDPG(**drawn, twin_critics=True, policy_delay=2, target_noise=0.2), WORLDS["continuous"]',
        'MADDPG(**drawn, sharing="agent", max_grad_norm=0.1), WORLDS["masked"]',
        'SAC(**drawn), WORLDS["continuous"]',
        'QLearning(**drawn, sequence=1, mixer="monotone", reward="mean"), WORLDS["masked"]',
    ],
)
def test_compiled_learning_is_learning(case: str) -> None:
    # In a process of its own: here every call is checked at run time, which a graph cannot hold.
    subprocess.run([sys.executable, "-c", COMPILED.format(case=case)], check=True)


def test_what_is_compiled_stays_where_it_was_compiled() -> None:
    policy = QUICK.learner(BatchedEnv(World(), 1).team, torch.Generator()).policy
    policy.compile_acting(torch.device("cpu"))  # nothing is compiled before the first step
    assert "step" in vars(policy)
    for other in (pickle.loads(pickle.dumps(policy)), deepcopy(policy), policy.part_for("action"), policy.frozen()):
        assert "step" not in vars(other) and other.step.__self__ is other
        assert all(map(torch.equal, other.state_dict().values(), policy.state_dict().values()))


def test_whole_episodes_are_not_compiled() -> None:
    with pytest.raises(ConfigError, match=r"algorithm.compile is True: it must be false, or give sequence"):
        type(QUICK)(compile=True)
