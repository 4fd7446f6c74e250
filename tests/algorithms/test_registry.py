"""Algorithms are found by name, by place, and by the packages that declare them."""

import sys
from dataclasses import dataclass

import pytest

from martes.algorithms.maddpg import MADDPG
from martes.algorithms.ppo import PPO
from martes.algorithms.q_learning import QLearning
from martes.algorithms.registry import BUILT_IN, Entry, algorithm_entries, algorithm_name, algorithm_named, config_class
from martes.errors import ConfigError
from martes.networks.mixers import Mixing


@dataclass(frozen=True)
class Mine:
    rate: float = 0.1

    def learner(self, team, generator):
        raise NotImplementedError


@dataclass(frozen=True)
class Bare:
    rate: float

    def learner(self, team, generator):
        raise NotImplementedError


def test_variants_are_values():
    assert algorithm_named("ppo") == PPO()
    assert algorithm_named("ippo") == PPO(critic="local")
    assert algorithm_named("mappo") == PPO(critic="central")
    plain = {"epochs": 1, "minibatches": 1, "clip": None, "value_clip": None}
    assert algorithm_named("ia2c") == algorithm_named("a2c") == PPO(critic="local", **plain)
    assert algorithm_named("maa2c") == PPO(critic="central", **plain)
    assert algorithm_named("qmix") == QLearning()
    assert algorithm_named("vdn") == QLearning(mixer="sum")
    assert algorithm_named("iql") == QLearning(mixer="none", reward="own")
    assert algorithm_named("qtran") == QLearning(mixer="joint", mixing=Mixing(width=64))
    assert algorithm_named("maddpg") == algorithm_named("ddpg") == MADDPG()
    smooth = MADDPG(twin_critics=True, policy_delay=2, target_noise=0.2)
    assert algorithm_named("matd3") == algorithm_named("td3") == smooth
    assert algorithm_named("dqn") == QLearning(mixer="none", reward="own", sequence=1, ratio=0.25)


def test_every_name_makes_a_config_and_leads_back_to_its_class():
    for name in BUILT_IN:
        config = algorithm_named(name)
        assert isinstance(algorithm_named(algorithm_name(config)), type(config))
    assert algorithm_name(PPO(critic="local")) == "ppo"


def test_a_class_of_the_users_own_is_named_by_its_place():
    place = f"{__name__}:Mine"
    assert algorithm_name(Mine()) == place
    assert config_class(place).__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mapo", "no algorithm 'mapo'; did you mean 'mappo'"),
        ("no_such_module:Mine", "cannot be imported"),
        ("martes.algorithms.ppo:PPPO", "cannot be imported"),
        ("martes.algorithms.ppo:gae", "is no algorithm: give a frozen dataclass with a method learner"),
        ("martes.training.settings:Training", "is no algorithm"),
    ],
)
def test_what_is_no_algorithm_is_refused(name, told):
    with pytest.raises(ConfigError, match=told):
        algorithm_named(name)


def test_a_hyperparameter_without_a_default_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "of_my_own", sys.modules[__name__])
    with pytest.raises(ConfigError, match="has no default for rate"):
        algorithm_named("of_my_own:Bare")


def test_an_installed_package_adds_names_but_takes_none(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n    rate: float = 0.5\n"
        "    def learner(self, team, generator): ...\n"
    )
    facts = tmp_path / "my_package-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[martes.algorithms]\nmine = my_package:Config\nppo = my_package:Other\n")
    monkeypatch.syspath_prepend(tmp_path)
    entries = algorithm_entries()
    assert entries["mine"] == Entry("my_package:Config", "from the package my-package")
    assert entries["ppo"] == BUILT_IN["ppo"]
    config = algorithm_named("mine")
    assert config.rate == 0.5
    assert algorithm_name(config) == "mine"
