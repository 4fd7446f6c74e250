"""Networks that grow in the midst of learning: losses, targets and moments of every learner go on as they were."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from martes.algorithms.autoregressive import MAT, Sable
from martes.algorithms.coma import COMA
from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.algorithms.resizing import Resizing, moves, observed_by_chance, outputs_by_chance
from martes.data.trees import mapped
from martes.envs.batched.engine import BatchedEnv
from martes.errors import ConfigError
from martes.networks import Network
from martes.networks.growth import Wiring
from martes.networks.mat import MATShape
from martes.networks.mixers import Mixing
from martes.networks.sable import SableShape
from martes.networks.targets import followed
from martes.training.collect import Collector
from tests.worlds import WORLDS, World

SMALL = Network(hidden=(8, 6), agent_id=True, channels=(2, 3))
GRU = {"memory": "gru", "memory_size": 5}
TOKENS = {"size": 8, "heads": 2, "feed_forward_size": 10}
Q = QLearning(
    mixer="none", reward="own", network=SMALL, rollout=16, ratio=0.1, batch=4, mixing=Mixing(8, (6,)), gamma=0.9
)
QUICK = {"rollout": 8, "epochs": 1, "minibatches": 1}
WIDER = {"hidden": (11, 7), "added": (5,), "channels": (3, 5)}
PACE = {"rollout": 16, "ratio": 0.1, "batch": 4}
LEARNERS: dict[str, tuple[str, Any, dict[str, Any]]] = {  # name -> world, config, how its networks grow
    "ippo": ("image", PPO(network=SMALL, critic="local", sharing="group", **QUICK), {"network": WIDER}),
    "mappo": ("dying", PPO(network=replace(SMALL, **GRU), **QUICK), {"network": WIDER | {"memory_size": 9}}),
    "continuous": ("continuous", PPO(network=SMALL, critic_network=SMALL, **QUICK), {"critic_network": WIDER}),
    "sable": ("unequal", Sable(network=SableShape(**TOKENS), **QUICK), {"network": {"feed_forward_size": 13}}),
    "mat": (
        "image",
        MAT(network=MATShape(**TOKENS), **QUICK),
        {"network": {"channels": (17, 33), "feed_forward_size": 12}},
    ),
    "iql": ("image", Q, {"network": WIDER}),
    "vdn": ("dying", replace(Q, mixer="sum", reward="sum", network=replace(SMALL, **GRU)), {"network": WIDER}),
    "qmix": ("dying", replace(Q, mixer="monotone", reward="mean"), {"network": WIDER, "mixing": {"hypernet": (9,)}}),
    "qtran": ("masked", replace(Q, mixer="joint", reward="mean", sharing="agent"), {"network": WIDER}),
    "maddpg": ("unequal", MADDPG(network=SMALL, random_start=False, **PACE), {"network": WIDER}),
    "matd3": (
        "continuous",
        MADDPG(network=replace(SMALL, **GRU), twin_critics=True, target_noise=0.2, sequence=3, **PACE),
        {"network": WIDER | {"memory_size": 9}},
    ),
    "coma": ("unequal", COMA(network=SMALL, reward="mean", rollout=8, sharing="group"), {"network": WIDER}),
}
NETWORKS = {name: {} for name in ("relu", "tanh", "gelu", "silu")} | {"norm": {"layer_norm": True}}
NETWORKS = {name: {"activation": name} if name != "norm" else each for name, each in NETWORKS.items()}
TURN = [*NETWORKS]
CASES = [(name, TURN[(i + k) % len(TURN)]) for i, name in enumerate(LEARNERS) for k in (0, 2)]


def case(name: str, **changes: Any) -> tuple[World, Any, Any]:
    """World, config, and config with grown networks; `changes` are those of every plain network."""
    world, config, grown = LEARNERS[name]

    def changed(each: Any) -> Any:
        fields = {key: getattr(each, key) for key in ("network", "critic_network") if hasattr(each, key)}
        return replace(each, **{k: replace(v, **changes) for k, v in fields.items() if isinstance(v, Network)})

    config = changed(config)
    wider = {name: replace(getattr(config, name), **fields) for name, fields in grown.items()}
    return WORLDS[world], config, replace(config, **wider)


def learned(world: World, config: Any) -> tuple[Any, Any]:
    """A learner that has learned, its targets apart from its networks, and a batch that it could learn from."""
    env = BatchedEnv(world, 4)
    learner = config.learner(env.team, torch.Generator().manual_seed(0))
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    batches = []
    while len(batches) < 2:
        learner.experience.add(collector.collect(), collector.final)
        for batch in learner.experience.due(10**6):
            learner.update(batch)
            batches.append(batch)
            if len(batches) == 2:
                break
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for part in learner.parts.values():
            for each in part.parameters() if isinstance(part, nn.Module) else ():
                each.add_(0.1 * torch.randn(each.shape, generator=generator))
    return learner, batches[-1]


def resized(learner: Any, world: World, old: Any, new: Any, **options: Any) -> tuple[Any, Any]:
    """The learner with the networks of another config, and what was told of it."""
    done = Resizing(world.team, old, new, **options).resized(learner.state_dict(), torch.Generator().manual_seed(5))
    other = new.learner(world.team, torch.Generator().manual_seed(6))
    other.load_state_dict(done.state)
    return other, done


def losses(learner: Any, batch: Any) -> dict[str, Tensor]:
    """All that it would descend, and watch."""
    memory = learner.policy.initial_memory(batch.envs)
    batch.memory = mapped(Tensor.clone, memory)
    found: dict[str, Tensor] = {}
    for name in ("loss", "critic_loss", "policy_loss"):
        if hasattr(learner, name):
            getattr(learner, "generator", torch.Generator()).manual_seed(3)
            found |= getattr(learner, name)(batch)[1]
    return found


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "network"), CASES)
def test_growth_changes_no_loss(name: str, network: str) -> None:
    world, old, new = case(name, **NETWORKS[network])
    learner, batch = learned(world, old)
    other, done = resized(learner, world, old, new)
    assert done.weights > 0
    before, after = losses(learner, batch), losses(other, batch)
    for key, value in before.items():
        assert torch.allclose(value, after[key], atol=1e-5, rtol=1e-4), key
    outputs = outputs_by_chance(learner, world.team)
    assert all(each <= 1e-5 * (1 + outputs[key].abs().max()) for key, each in done.moved.items()) and done.moved
    other.update(batch) if "advantage" not in batch else other.loss(batch)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["vdn", "qtran", "matd3", "coma"])
def test_targets_keep_their_distance(name: str) -> None:
    world, old, new = case(name)
    learner, _ = learned(world, old)
    other, _ = resized(learner, world, old, new)
    before, after = (_distances(each) for each in (learner, other))
    assert before and before.keys() == after.keys() - {key for key in after if ".added." in key}
    for key, each in before.items():
        assert each > 0 and torch.allclose(each, after[key])


def _distances(learner: Any) -> dict[str, Tensor]:
    networks = [each for each in learner.parts.values() if isinstance(each, nn.Module)]
    targets = [each for network in networks for each in network.modules() if followed(each) is not None]
    return {
        f"{place}.{name}": (theirs - ours).norm()
        for place, target in enumerate(targets)
        for (name, theirs), ours in zip(target.named_parameters(), followed(target).parameters(), strict=True)
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["ippo", "mat", "qtran", "coma"])
def test_moments_and_counts_survive(name: str) -> None:
    world, old, new = case(name)
    learner, _ = learned(world, old)
    other, _ = resized(learner, world, old, new)
    for part, optimiser in learner.parts.items():
        if not isinstance(optimiser, torch.optim.Optimizer):
            continue
        names, others = (Wiring.of(each.parts) for each in (learner, other))
        states = {others.names[id(each)]: state for each, state in other.parts[part].state.items()}
        for parameter, state in optimiser.state.items():
            grown = states[names.names[id(parameter)]]
            assert grown["step"] == state["step"] > 0
            for key in ("exp_avg", "exp_avg_sq"):
                kept, found = state[key], grown[key]
                assert torch.equal(kept[kept != 0].sort().values, found[found != 0].sort().values)
                assert found.shape == others.tensors[names.names[id(parameter)]].shape
    before, after = learner.state_dict(), other.state_dict()
    for key in before.keys() - learner.parts.keys():
        assert str(before[key]) == str(after[key])


def test_what_shrank_is_told_as_it_is_measured() -> None:
    world, new, old = case("ippo")
    learner, _ = learned(world, old)
    other, done = resized(learner, world, old, new, accepts_change=True)
    assert done.weights < 0
    steps = list(observed_by_chance(world.team))
    apart: dict[str, float] = {}
    for inputs in steps:
        one, two = learner.policy.step(inputs, ())[0], other.policy.step(inputs, ())[0]
        for key in ("log_prob", "entropy", "value"):
            apart[key] = max(apart.get(key, 0.0), (one[key] - two[key]).abs().max().item())
    assert done.moved == pytest.approx(apart) and min(apart.values()) > 1e-3
    assert f"moved by {max(apart.values()):.2g} at most" in done.note and f"{done.weights} weights" in done.note


def test_trials_hold_what_any_policy_reads() -> None:
    for world in WORLDS.values():
        steps = list(observed_by_chance(world.team))
        legal = world.team.legal_actions
        for step in steps:
            assert {"agent_mask", "action", *world.team.parts} <= step.keys()
            assert len(step["action"]) == 16 and not any("start" in each for each in step)
            if world.kind == "discrete":
                assert legal[torch.arange(world.agents), step["action"]].all()
            if world.kind == "continuous":
                low, high = world.team.bounds
                assert (step["action"] >= low).all() and (step["action"] <= high).all()
        again = next(observed_by_chance(world.team))
        assert all(torch.equal(each, again[key]) for key, each in steps[0].items())


def test_outputs_of_another_shape_are_not_compared() -> None:
    one, two = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(2, dtype=torch.int64)}, {"a": torch.ones(2)}
    assert moves(one, two | {"b": torch.zeros(3), "c": torch.ones(2, dtype=torch.int64)}) == {"a": 1.0}


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        (MAT(network=MATShape(size=8)), MAT(network=MATShape(size=8, heads=2)), "algorithm.network.heads cannot"),
        (Sable(network=SableShape(size=8)), Sable(network=SableShape(size=16)), "network.size cannot go from 8 to 16"),
        (PPO(network=SMALL), PPO(network=replace(SMALL, activation="tanh")), "network.activation cannot go from relu"),
        (PPO(network=SMALL), PPO(network=replace(SMALL, hidden=(7, 6))), "hidden.0 would go from 8 units to 7"),
        (PPO(network=SMALL), PPO(network=SMALL, sharing="agent"), "no layer's width says how"),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused_unless_a_change_is_accepted(old: Any, new: Any, error: str) -> None:
    world = WORLDS["unequal"]
    learner = old.learner(world.team, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=error):
        resized(learner, world, old, new)
    if old.sharing == new.sharing:
        _, done = resized(learner, world, old, new, accepts_change=True)
        assert max(done.moved.values()) > 0


@pytest.mark.usefixtures("unchecked")
def test_a_learner_that_does_not_tell_its_parts_is_refused() -> None:
    class Silent:
        def learner(self, team: Any, generator: torch.Generator) -> Any:
            made = PPO(network=SMALL).learner(team, generator)
            return type("Told", (), {"policy": made.policy, "load_state_dict": lambda self, state: None})()

    with pytest.raises(ConfigError, match="Told cannot change their size"):
        Resizing(World().team, Silent(), Silent()).resized({}, torch.Generator())  # pyright: ignore
