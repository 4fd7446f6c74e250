"""Every listed environment, of this library and of others, keeps the one contract and can be learned from."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch

from martes.algorithms.ppo import PPO
from martes.data import VectorEnv
from martes.envs.catalogue import environment
from martes.envs.names import CATALOGUE, FAMILIES
from martes.envs.settings import Environment
from martes.envs.wrappers import Wrap
from martes.networks import Network
from martes.training.collect import Collector
from tests.envs.contract import Promise, assert_same, check, played
from tests.extras import marked

SAMPLES: dict[str, tuple[str, ...]] = {
    "gymnasium": ("CartPole-v1", "Pendulum-v1"),
    "pettingzoo": ("pettingzoo.classic.connect_four_v3",),
    "mpe2": ("simple_crypto_v3",),
    "lbforaging": ("Foraging-8x8-2p-2f-coop-v3",),
    "magent2": ("adversarial_pursuit_v4",),
    "mamujoco": ("Humanoid-9|8",),
    "lle": ("level6",),
    "vmas": ("balance", "simple_speaker_listener"),
    "jaxmarl": ("MPE_simple_speaker_listener_v4",),
    "jumanji": ("LevelBasedForaging-v0", "Connector-v3"),
    "open-spiel": ("hanabi",),
}
"""Tasks of each family, beyond those that have a name of their own."""
OWN = {"pymarl": "tests.envs.adapters.test_pymarl:Battle", "plain": "tests.envs.adapters.test_plain:Walk"}
"""Tasks that a user wrote, by the interface that they speak."""
SAMPLED = [f"{family}:{each}" for family in SAMPLES for each in SAMPLES[family]]
NAMES = [*CATALOGUE, "lbf-2s-8x8-2p-2f-coop", *SAMPLED, *OWN]


def task(name: str) -> Environment:
    return Environment(name, factory=OWN.get(name))


def promise(name: str) -> Promise:
    def make(copies: int, limit: int | None) -> VectorEnv:
        return environment(replace(task(name), wrap=Wrap(time_limit=limit)), copies)

    return Promise(make, tells_state=False if name.startswith("vmas:") else None)


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
def test_the_contract_is_kept(name: str) -> None:
    check(promise(name))


@pytest.mark.parametrize("name", [marked(name) for name in NAMES])
def test_two_updates_move_every_parameter(name: str) -> None:
    """Local critics take every team; parameters are those of groups, so that each group must learn."""
    network = Network(hidden=(8,), activation="tanh", channels=(4,))
    config = PPO(critic="local", sharing="group", network=network, rollout=6, epochs=1, minibatches=1)
    with closing(environment(task(name), 2)) as env:
        learner = config.learner(env.team, torch.Generator().manual_seed(0))
        before = {each: value.detach().clone() for each, value in learner.policy.named_parameters()}
        collector = Collector(env, learner, torch.Generator().manual_seed(1))
        collector.start(2)
        for _ in range(2):
            metrics = learner.update(collector.collect())
        assert all(value.isfinite() for value in metrics.values())
        still = [each for each, value in learner.policy.named_parameters() if torch.equal(before[each], value)]
        assert not still, f"these did not move: {still}"


NATIVE = ("batched", "jaxmarl", "jumanji", "vmas")
"""Parts of the places of what steps all copies at once."""
PLACES = {name: (CATALOGUE.get(name) or FAMILIES[name.partition(":")[0]]).place for name in [*CATALOGUE, *SAMPLED]}
HOSTED = [*(name for name, place in PLACES.items() if not any(part in place for part in NATIVE)), *OWN]


@pytest.mark.parametrize("name", [marked(name) for name in HOSTED])
def test_processes_make_the_steps_that_one_process_makes(name: str) -> None:
    here = replace(task(name), start_method="forkserver")
    with closing(environment(here, 3)) as one, closing(environment(replace(here, workers=2), 3)) as other:
        for t, (ours, theirs) in enumerate(zip(played(one, 5, 30), played(other, 5, 30), strict=True)):
            assert_same(ours, theirs, f"at step {t}")
