"""Learners whose groups have hidden layers of their own: padding learns nothing, and all else goes on as ever."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from martes.algorithms.coma import COMA
from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.algorithms.resizing import Resizing
from martes.algorithms.soft_actor_critic import SAC
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.evolution.architecture import Architecture, Shapes
from martes.evolution.member import newborn
from martes.evolution.mutations import Parameters
from martes.networks import Network
from martes.networks.blocks import Body
from martes.networks.stacked import StackedLinear
from martes.training.collect import Collector
from tests.worlds import WORLDS

NETWORK = Network((8, 6), "tanh", agent_id=True, hidden_by_group={"small": (4,), "big": (5, 7)})
ROLLOUTS: dict[str, Any] = {"sharing": "group", "network": NETWORK, "rollout": 8}
REPLAYED: dict[str, Any] = {"network": NETWORK, "rollout": 16, "ratio": 0.1, "batch": 8, "warmup": 0}
REMEMBERING = REPLAYED | {"network": replace(NETWORK, memory="gru")}
LEARNERS: dict[str, tuple[str, Any]] = {
    "ippo": ("unequal", PPO(critic="local", epochs=2, minibatches=1, **ROLLOUTS)),
    "mappo": ("unequal", PPO(epochs=2, minibatches=1, **ROLLOUTS)),
    "coma": ("unequal", COMA(reward="mean", **ROLLOUTS)),
    "maddpg": ("unequal", MADDPG(random_start=False, **REPLAYED)),
    "matd3": ("unequal", MADDPG(twin_critics=True, policy_delay=2, target_noise=0.2, **REPLAYED)),
    "vdn": ("unequal", QLearning(mixer="sum", reward="mean", sharing="group", dueling=True, **REPLAYED)),
    "iql-gru": (
        "unequal",
        QLearning(
            mixer="none", reward="own", sharing="group", **REPLAYED | {"network": replace(NETWORK, memory="gru")}
        ),
    ),
    "masac": ("unequal", SAC(sharing="group", **REPLAYED)),
}


def learned(name: str) -> tuple[Any, Any]:
    """A fresh learner, and what it learns from first."""
    world, config = LEARNERS[name]
    env = BatchedEnv(WORLDS[world], 6)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    window = collector.collect()
    learner.experience.add(window, collector.final)
    return learner, next(iter(learner.experience.due(window.time * window.envs)))


def padding(body: Body) -> list[Tensor]:
    """What stands beyond the slots' own sizes, in every layer that a body has."""
    found: list[Tensor] = []
    for depth, layer in enumerate(body.layers):
        assert isinstance(layer, StackedLinear)
        for slot, made in enumerate(body.widths.made(depth)):
            found += [layer.weight[slot, made:], layer.bias[slot, made:]]
            if depth:
                found.append(layer.weight[slot, :, body.widths.after(depth - 1)[slot] :])
    return found


def divided(learner: Any) -> list[Body]:
    parts = [each for each in learner.parts.values() if isinstance(each, torch.nn.Module)]
    bodies = [module for part in parts for module in part.modules() if isinstance(module, Body)]
    return [body for body in bodies if not body.widths.are_equal]


@pytest.mark.parametrize("name", LEARNERS)
def test_padding_learns_nothing_and_every_layer_learns(name: str) -> None:
    learner, batch = learned(name)
    bodies = divided(learner)
    assert bodies, "no network has layers by group"
    online = [body for body in bodies if next(body.parameters()).requires_grad]
    before = [{key: each.detach().clone() for key, each in body.named_parameters()} for body in online]
    for _ in range(2):
        learner.update(batch)
    for body, old in zip(online, before, strict=True):
        assert not any(each.any() for each in padding(body))
        for key, each in body.named_parameters():
            moved = (each.detach() != old[key]).flatten(1).any(1)
            depth = int(key.split(".")[1]) if key.startswith("layers") else 0
            assert moved.tolist() == [size > 0 for size in body.widths.made(depth)], key


@pytest.mark.parametrize("name", ["ippo", "matd3"])
def test_a_checkpoint_restores_it(name: str) -> None:
    world, config = LEARNERS[name]
    learner, batch = learned(name)
    learner.update(batch)
    other = config.learner(WORLDS[world].team, torch.Generator().manual_seed(5))
    other.load_state_dict(learner.state_dict())
    for one, two in zip(divided(learner), divided(other), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_noise_on_weights_leaves_padding_alone() -> None:
    member = newborn(LEARNERS["ippo"][1], WORLDS["unequal"].team, 0, torch.Generator().manual_seed(0))
    done = Parameters(share=1.0).mutated(member, torch.Generator().manual_seed(1))
    assert done is not None
    learner = LEARNERS["ippo"][1].learner(WORLDS["unequal"].team, torch.Generator())
    learner.load_state_dict(done.member.learner)
    assert not any(each.any() for body in divided(learner) for each in padding(body))


def test_added_layers_come_and_weights_are_counted_without_padding() -> None:
    team, config = WORLDS["unequal"].team, PPO(critic="local", epochs=1, minibatches=1, **ROLLOUTS)
    member = newborn(config, team, 0, torch.Generator().manual_seed(0))
    mutation = Architecture(Shapes(units=(4, 40), new_layer=1.0))
    with pytest.raises(ConfigError, match="no width that can move"):
        mutation.refuse_unfit(config, team)
    done = mutation.mutated(member, torch.Generator().manual_seed(0))
    assert done is not None and done.member.algorithm.network.added == (6,)
    # Policy and critic, each slot's own features: 4 -> 6 -> 4 and 7 -> 6 -> 7.
    assert "+" + str(2 * sum((size + 1) * 6 + (6 + 1) * size for size in (4, 7))) in done.change.note
    wider = PPO(critic="local", **{**ROLLOUTS, "network": Network((8, 6), hidden_by_group={"small": (5,)})})
    with pytest.raises(ConfigError, match="keep their sizes"):
        Resizing(team, config, wider, accepts_change=True).resized(member.learner, torch.Generator())
