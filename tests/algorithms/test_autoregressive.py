"""Teams that act in turn under the clipped loss: the ratio before the first step, every switch, and what is refused."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from martes.algorithms.autoregressive import MAT, Sable
from martes.algorithms.registry import algorithm_named
from martes.data import Workspace
from martes.data.trees import leaves
from martes.errors import ConfigError
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from tests.algorithms.rollouts import collected, collecting
from tests.worlds import WORLDS, World, crossed

SMALL = SableShape(size=8, heads=2, decay_scale=1.0, chunk_size=7, names_actions=True)
CONFIGS: dict[str, Sable | MAT] = {
    "rec-sable": Sable(network=SMALL, rollout=9),
    "rec-sable, drawn, turned": Sable(network=replace(SMALL, order="drawn", time_encoding="rotary"), rollout=9),
    "ff-sable": Sable(network=replace(SMALL, memory=False), rollout=9),
    "mat": MAT(network=MATShape(size=8, heads=2, order="drawn"), rollout=9),
}


def parts_of(learner: Any, window: Workspace, count: int = 3) -> list[Workspace]:
    learner._score(window)
    taught = window.subset((*learner.policy.reads, *learner.policy.writes, "start", "advantage", "target"))
    return list(taught.minibatches(count, learner.by, learner.generator))


@pytest.mark.usefixtures("unchecked")  # the matrix of contracts takes the same ways with checks
@pytest.mark.parametrize(("world", "name", "sharing"), crossed([*WORLDS], [*CONFIGS], ["group", "shared"]))
def test_ratio_is_one_on_every_sample_before_the_first_step(world: str, name: str, sharing: str) -> None:
    """On the third rollout, resets inside, memories carried over: tokens, orders, clocks and resets must all agree."""
    config = replace(CONFIGS[name], sharing=sharing, normalise_value=False)  # pyright: ignore
    learner, window = collected(WORLDS[world], config, windows=3)
    assert window["start"][1:].any()
    for part in parts_of(learner, window):
        new = learner.policy.sequence(
            {each: part[each][: part.time] for each in (*learner.policy.reads, *learner.policy.given)},
            part.memory,
            part["start"][: part.time],
        )[0]
        decided = part.decided
        assert torch.allclose(new["log_prob"][decided], part["log_prob"][decided], atol=1e-4)
        assert torch.allclose(new["value"][part.mask], part["value"][part.mask], atol=1e-4)
        _, metrics = learner.loss(part)
        assert abs(metrics["kl"]) < 1e-6 and metrics["clip_fraction"] == 0


def test_memories_stay_with_their_environments_in_every_epoch() -> None:
    """With a step size of almost nothing the ratio is 1 in the last epoch as in the first."""
    config = replace(CONFIGS["rec-sable"], lr=1e-12, epochs=5, minibatches=3, normalise_value=False)
    learner, window, collector = collecting(World(ends=0.05, limit=50), config, windows=2)
    memory = dict(leaves(window.memory))
    assert memory["encoder"].std(0).max() > 0, "equal memories could be confused without harm"
    metrics = learner.update(window)
    assert abs(metrics["kl"]) < 1e-9 and metrics["gradient_steps"] == 15
    shuffled = {name: leaf.roll(1, 0) for name, leaf in memory.items()}
    window = collector.collect()
    window.memory = shuffled
    assert learner.update(window)["kl"] > 1e-9, "a wrong memory would be seen"


def test_each_ratio_is_that_of_the_agents_own_conditional() -> None:
    """Halving one agent's recorded probability doubles its ratio and nobody else's."""
    config = replace(CONFIGS["rec-sable"], clip=10.0, standardise_advantage=False, normalise_value=False)
    learner, window = collected(World(ends=0.0), config)
    (part,) = parts_of(learner, window, 1)
    part["advantage"] = torch.ones_like(part["advantage"])
    before = learner.loss(part)[1]["policy_loss"]
    log_prob = part["log_prob"].clone()
    log_prob[:, :, 1] -= torch.tensor(2.0).log()
    part["log_prob"] = log_prob
    assert torch.allclose(before, torch.tensor(-1.0), atol=1e-4)
    assert torch.allclose(learner.loss(part)[1]["policy_loss"], torch.tensor(-(1 + 2 + 1) / 3), atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("world", ["dying", "unequal"])
def test_summed_gradients_of_parts_are_that_of_the_whole(world: str, name: str) -> None:
    config = replace(CONFIGS[name], minibatches=1, max_grad_norm=None, epochs=1)
    moved = []
    for parts in (1, 3):
        learner, window = collected(WORLDS[world], replace(config, accumulate=parts))
        metrics = learner.update(window)
        moved.append(({name: p.grad.clone() for name, p in learner.policy.named_parameters()}, metrics))
    (whole, seen), (summed, also) = moved
    assert max(grad.abs().max() for grad in whole.values()) > 1e-3
    for each, grad in whole.items():
        assert torch.allclose(grad, summed[each], atol=2e-5), each
    for metric in ("loss", "policy_loss", "value_loss", "entropy"):
        assert torch.allclose(seen[metric], also[metric], atol=1e-5), metric


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_computed_again_gives_the_same_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        network = replace(CONFIGS[name].network, recompute=recompute)
        learner, window = collected(World(), replace(CONFIGS[name], network=network))  # pyright: ignore
        (part,) = parts_of(learner, window, 1)
        learner.loss(part)[0].backward()
        gradients.append([p.grad.clone() for p in learner.policy.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def saved_bytes(network: SableShape, world: World, rollout: int) -> int:
    """What autograd keeps for the backward pass of one loss."""
    learner, window = collected(world, Sable(network=network, rollout=rollout), envs=2)
    (part,) = parts_of(learner, window, 1)
    kept: dict[int, int] = {}

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(noted, lambda tensor: tensor):
        learner.loss(part)
    return sum(kept.values())


@pytest.mark.parametrize("memory", [True, False])
def test_what_is_kept_grows_linearly_in_time_and_in_agents(memory: bool) -> None:
    network = replace(SMALL, memory=memory, chunk_size=8, names_actions=False)
    by_time = [saved_bytes(network, World(agents=4), rollout) for rollout in (32, 64, 128)]
    assert by_time[2] - by_time[1] <= 2.2 * (by_time[1] - by_time[0])
    by_agents = [saved_bytes(network, World(agents=agents), 8) for agents in (32, 64, 128)]
    assert by_agents[2] - by_agents[1] <= 2.2 * (by_agents[1] - by_agents[0])
    thrifty = saved_bytes(replace(network, recompute=True), World(agents=4), 128)
    assert thrifty < by_time[2] / 2


def test_a_time_limit_counts_for_nothing_where_one_says_so() -> None:
    world = World(ends=0.0, limit=4)
    for bootstraps in (True, False):
        learner, window = collected(world, replace(CONFIGS["rec-sable"], bootstraps_limits=bootstraps, gae_lambda=0.0))
        learner._score(window)
        cut = window["cut"]
        expected = window["reward"] + 0.99 * window["next_value"] * (1.0 if bootstraps else 0.0)
        assert cut.any() and (window["next_value"][cut].abs() > 1e-4).all()
        assert torch.allclose(window["target"][cut], expected[cut], atol=1e-6)


COMPILED = """
from dataclasses import replace
import torch
from tests.algorithms.rollouts import collecting
from tests.algorithms.test_autoregressive import CONFIGS
from tests.worlds import World
config = replace(CONFIGS["{name}"], epochs=2, minibatches=1)
moved = []
for compile in (False, True):
    learner, window, collector = collecting(World(), replace(config, compile=compile))
    learner.update(window)
    learner.update(collector.collect())
    moved.append([p.detach() for p in learner.policy.parameters()])
for one, other in zip(*moved, strict=True):
    assert torch.allclose(one, other, atol=1e-4)
"""


@pytest.mark.parametrize("name", ["rec-sable", "mat"])
def test_compiled_learning_is_learning(name: str) -> None:
    # In a process of its own: here every call is checked at run time, which a graph cannot hold.
    subprocess.run([sys.executable, "-c", COMPILED.format(name=name)], check=True)


@pytest.mark.usefixtures("unchecked")
def test_names_say_which_has_memory() -> None:
    assert algorithm_named("rec-sable").network.memory and not algorithm_named("ff-sable").network.memory  # pyright: ignore
    for name, wrong in (("accumulate", 0), ("rollout", 0), ("minibatches", 0)):
        with pytest.raises(ConfigError, match=f"algorithm.{name} is 0"):
            Sable(**{name: wrong})
    with pytest.raises(ConfigError, match="time_encoding is 'sung': it must be added or rotary or none"):
        SableShape(time_encoding="sung")  # pyright: ignore
