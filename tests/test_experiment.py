"""An experiment is written and read exactly; whatever is unknown or cannot be is refused by its path."""

from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from martes.algorithms.ppo import PPO
from martes.algorithms.registry import algorithm_named
from martes.conversion import Typed, as_typed, plain
from martes.envs.settings import Environment
from martes.envs.wrappers import Wrap
from martes.errors import ConfigError
from martes.experiment import Experiment, settings_of
from martes.networks import Network
from martes.presets import PRESETS

SPREAD = Experiment(Environment("mpe-spread", options={"agents": 5}), PPO())

rates = st.floats(1e-12, 1e3)
values = st.fixed_dictionaries(
    {},
    optional={
        "env.agents": st.integers(1, 9),
        "algorithm.lr": rates,
        "algorithm.clip": st.none() | rates,
        "algorithm.network.hidden": st.lists(st.integers(1, 512), min_size=1, max_size=4).map(tuple),
        "algorithm.network.memory": st.sampled_from(["none", "gru"]),
        "algorithm.network.hidden_by_group.speaker": st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple),
        "algorithm.critic_network.hidden": st.lists(st.integers(1, 512), min_size=1, max_size=4),
        "training.steps": st.integers(1, 10**12),
        "training.seed": st.integers(0, 2**40),
        "evaluation.greedy": st.booleans(),
        "logging.wandb": st.none() | st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
    },
)


@given(values)
def test_yaml_is_exact(changes):
    experiment = SPREAD.changed(changes)
    again = Experiment.from_yaml(experiment.to_yaml())
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()


def test_yaml_is_complete_and_in_the_order_of_the_fields():
    tree = yaml.safe_load(SPREAD.to_yaml())
    assert list(tree) == ["env", "algorithm", "training", "evaluation", "logging"]
    assert {**tree["env"], "wrap": None} == {
        "name": "mpe-spread",
        "copies": 64,
        "factory": None,
        "options": {"agents": 5},
        "wrap": None,
        "workers": 0,
        "timeout": 60.0,
        "start_method": "spawn",
        "compile": False,
    }
    assert tree["env"]["wrap"] == {each.name: plain(each.default) for each in fields(Wrap)}
    assert list(tree["algorithm"])[:4] == ["name", "sharing", "rollout", "epochs"]
    assert tree["algorithm"]["name"] == "ppo"
    assert "hidden: [64, 64]\n" in SPREAD.to_yaml()


def test_every_value_can_be_typed():
    for name in (
        "mappo/mpe-spread",
        "ippo-gru/lbf-8x8-2p-2f-coop",
        "rec-sable/probe-death",
        "mat/two-step",
        "vdn/climbing",
    ):
        experiment = PRESETS[name]
        settings = list(settings_of(experiment))
        assert all(each.doc for each in settings)
        typed = [(each.path, Typed(as_typed(each.value))) for each in settings]
        same = experiment.changed(typed)
        assert replace(same, env=experiment.env) == experiment
        assert Experiment.from_yaml(experiment.to_yaml()).changed(typed) == same


def test_changes():
    changed = SPREAD.changed({"algorithm.lr": 1e-3, "env.local_ratio": 1, "env.options.agents": 4, "training.seed": 7})
    assert changed.algorithm == PPO(lr=1e-3)
    assert changed.env.options == {"agents": 4, "local_ratio": 1.0}
    assert changed.training.seed == 7
    assert SPREAD.env.options == {"agents": 5}
    assert SPREAD.changed({"algorithm": PPO(lr=1.0)}).algorithm == PPO(lr=1.0)
    assert SPREAD.changed({"algorithm.critic_network.hidden": [8]}).algorithm.critic_network == Network(hidden=(8,))


def test_layers_by_group_are_typed_one_by_one_or_together():
    network, one = PPO().network, {"algorithm.network.hidden_by_group.speaker": Typed("32")}
    plain_one = SPREAD.changed(one)
    assert plain_one.algorithm.network == replace(network, hidden_by_group={"speaker": (32,)})
    both = replace(network, hidden_by_group={"speaker": (32,), "listener": (128, 64)})
    assert plain_one.changed({"algorithm.network.hidden_by_group.listener": Typed("128,64")}).algorithm.network == both
    together = {"algorithm.network.hidden_by_group": Typed("{speaker: [32], listener: [128, 64]}")}
    assert SPREAD.changed(together).algorithm.network == both
    assert plain_one.changed({"algorithm.network.hidden_by_group": Typed("{}")}).algorithm.network == network
    assert Experiment.from_yaml(SPREAD.changed(together).to_yaml()) == SPREAD.changed(together)
    with pytest.raises(ConfigError, match=r"hidden_by_group\.speaker\[1\] is 'wide': it must be a whole number"):
        SPREAD.changed({"algorithm.network.hidden_by_group.speaker": Typed("32,wide")})
    with pytest.raises(ConfigError, match=r"hidden_by_group is '32': it must be a mapping"):
        SPREAD.changed({"algorithm.network.hidden_by_group": Typed("32")})


def test_another_task_forgets_the_options_of_the_old_one():
    assert SPREAD.changed({"env.name": "two-step"}).env == Environment("two-step")
    assert SPREAD.changed({"env.name": "mpe-spread"}).env == SPREAD.env
    new = SPREAD.changed({"env.name": "memory-cue", "env.delay": 3})
    assert new.env.options == {"delay": 3}


def test_another_algorithm_begins_at_its_own_values():
    experiment = SPREAD.changed({"algorithm.lr": 1.0}).changed({"algorithm.name": "ia2c", "algorithm.gamma": 0.5})
    assert experiment.algorithm == replace(algorithm_named("ia2c"), gamma=0.5)


def test_what_a_file_leaves_out_comes_from_the_start():
    read = Experiment.from_yaml("algorithm: {lr: 1e-3}\nenv: {agents: 2}\ntraining: {seed: 3}", SPREAD)
    assert read == SPREAD.changed({"algorithm.lr": 1e-3, "env.agents": 2, "training.seed": 3})
    whole = Experiment(Environment("mpe-spread"), PPO())
    assert Experiment.from_yaml(whole.to_yaml(), SPREAD) == whole


def anything(copies, **options):
    """A factory that takes whatever comes."""


def test_a_factorys_options_are_those_of_its_signature():
    typed = [("env.factory", "tests.worlds:World"), ("env.ends", Typed("1e-3")), ("env.has_masks", Typed("true"))]
    experiment = SPREAD.changed(typed)
    assert experiment.env.options == {"ends": 1e-3, "has_masks": True}
    assert Experiment.from_yaml(experiment.to_yaml()) == experiment
    with pytest.raises(ConfigError, match=r"unknown key 'env.endss'; did you mean 'ends'"):
        SPREAD.changed([*typed, ("env.endss", 1)])
    free = SPREAD.changed({"env.factory": f"{__name__}:anything", "env.depth": Typed("1e-3")})
    assert free.env.options == {"depth": 1e-3}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("algorithm.lrr", "1", "unknown key 'algorithm.lrr'; did you mean 'lr'"),
        ("lr", "1", "unknown key 'lr'; did you mean 'algorithm.lr'"),
        ("algorihm.lr", "1", "unknown key 'algorihm'; did you mean 'algorithm'"),
        ("algorithm.network.hiden", "1", "unknown key 'algorithm.network.hiden'; did you mean 'hidden'"),
        ("algorithm.name", "mapo", "no algorithm 'mapo'; did you mean 'mappo'"),
        ("algorithm.lr", "abc", "algorithm.lr is 'abc': it must be a finite number"),
        ("algorithm.clip", "-1", "algorithm.clip is -1.0: it must be above 0, or none"),
        ("algorithm.critic", "lcal", "algorithm.critic is 'lcal': it must be local or central"),
        ("algorithm", "ppo", "algorithm is 'ppo': give its fields one by one"),
        ("env.copes", "3", "unknown key 'env.copes'; did you mean 'copies'"),
        ("env.agnets", "3", "unknown key 'env.agnets'; did you mean 'agents'"),
        ("env.agents", "x", "env.agents is 'x': it must be a whole number"),
        ("env.name", "mpe-sprad", "no environment 'mpe-sprad'; did you mean 'mpe-spread'"),
        ("env.copies", "0", "env.copies is 0: it must be at least 1"),
        ("training.steps", "0", "training.steps is 0: it must be at least 1"),
        ("training.seed", "-1", "training.seed is -1: it must be at least 0"),
        ("training.device", "gpu!", "training.device is 'gpu!': give cpu, cuda"),
        ("evaluation.greedy", "maybe", "evaluation.greedy is 'maybe': it must be true or false"),
        ("logging.progress", "some", "logging.progress is 'some': it must be auto or live or plain or none"),
    ],
)
def test_what_is_unknown_or_cannot_be(path, value, told):
    with pytest.raises(ConfigError, match=told):
        SPREAD.changed([(path, Typed(value))])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: b: c", "x.yaml is not YAML"),
        ("- 1", "x.yaml holds no configuration: it is list"),
        ("", "x.yaml holds no configuration"),
        ("env: {name: mpe-spread}", "x.yaml: algorithm.name is missing"),
        ("algorithm: {name: ppo, lr: 1, lr: 2}", "'lr' stands twice"),
        ("algorithm: {name: ppo}\nenv: {agents: 2, options: {agents: 3}}", "agents"),
        ("algorithm: {name: ppo, lrr: 2}", "x.yaml: unknown key 'algorithm.lrr'"),
        ("algorithm: {name: ppo}\ntrainig: {}", "unknown key 'trainig'; did you mean 'training'"),
        ("algorithm: {name: ppo}\ntraining: 3", "training is 3: give its fields one by one"),
        ("algorithm: !!python/object/apply:os.system [x]", "x.yaml is not YAML"),
    ],
)
def test_a_file_that_cannot_be(text, told):
    with pytest.raises(ConfigError, match=told):
        Experiment.from_yaml(text, source="x.yaml")


def test_a_path_is_given_once():
    with pytest.raises(ConfigError, match=r"env.agents is given twice: 1 and 2"):
        SPREAD.changed([("env.agents", Typed("1")), ("env.options.agents", Typed("2"))])
