import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from martes.data import Discrete, VectorEnv
from martes.envs.batched import BatchedEnv
from martes.envs.batched.crowd import Crowd
from martes.envs.batched.foraging import Foraging
from martes.envs.batched.matrix import climbing
from martes.envs.batched.mpe import Spread
from martes.envs.catalogue import environment, game_options, make_env
from martes.envs.names import CATALOGUE, FORAGING, listed_envs
from martes.envs.settings import Environment
from martes.envs.wrappers import Wrap
from martes.errors import ConfigError, EnvError
from tests.envs.batched.test_engine import random_action


def played(env: Any, seed: int, steps: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [env.step(random_action(env, generator)) for _ in range(steps)]


def test_a_name_sets_options_and_the_user_changes_them():
    assert game(make_env("mpe-spread", 2)) == Spread()
    assert game(make_env("mpe-spread-continuous", 2, options={"agents": 5})) == Spread(agents=5, continuous=True)
    assert game(make_env("mpe-spread-continuous", 2, options={"continuous": False})) == Spread()
    assert game(make_env("crowd", 2, options={"agents": 1000, "shared": False})) == Crowd(1000, shared=False)
    assert game(make_env("climbing", 2, options={"steps": 25})) == climbing(25)


def test_the_names_of_foraging_are_read():
    small = Foraging(size=(8, 8), agents=2, food=2, coop=True, sight=2)
    assert game(make_env("lbf-2s-8x8-2p-2f-coop", 1)) == small
    assert game(make_env("lbf-15x15-4p-5f", 1)) == Foraging(size=(15, 15), agents=4, food=5)
    assert game(make_env("lbf-8x8-2p-2f", 1, options={"penalty": 0.1})) == Foraging(penalty=0.1)
    assert game_options("lbf-10x10-3p-3f")["size"].default == (10, 10)
    with pytest.raises(ConfigError, match=r"-8x8-2p.*names no foraging task"):
        make_env("lbf-8x8-2p", 1)


def game(env: VectorEnv) -> Any:
    assert isinstance(env, BatchedEnv)
    return env.game


def test_options_are_told_with_kind_default_and_doc():
    options = game_options("mpe-spread-continuous")
    assert options["agents"].kind is int
    assert options["agents"].default == 3
    assert options["continuous"].default is True  # what this name sets
    assert game_options("penalty")["k"].default == -100.0
    for name in CATALOGUE:
        assert all(option.doc for option in game_options(name).values()), name


def test_the_list_holds_every_name_and_the_grammar_of_foraging():
    listed = listed_envs()
    assert set(CATALOGUE) < set(listed)
    assert FORAGING in listed["lbf-..."].doc
    assert all(each.doc for each in listed.values())
    assert all(listed[name].cure == "" for name in CATALOGUE if not CATALOGUE[name].extra)
    assert "gymnasium:..." in listed


# ------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("mpe-spred", {}, "no environment 'mpe-spred'; did you mean 'mpe-spread'"),
        ("", {}, "no environment ''; known: .*two-step"),
        ("gymnasum:CartPole-v1", {}, "did you mean 'gymnasium:<task>'"),
        ("gymnasium:CartPole-v99", {}, "CartPole-v1"),
        ("mpe-spread", {"agent": 3}, r"'env\.agent'; did you mean 'agents'"),
        ("mpe-spread", {"copies": 3}, r"unknown key 'env\.copies'"),
        ("climbing", {"step": 3}, r"'env\.step'; did you mean 'steps'"),
        ("mpe-spread", {"agents": "three"}, r"env\.agents is 'three': it must be a whole number"),
        ("mpe-spread", {"agents": 2.5}, r"env\.agents is 2\.5: it must be a whole number"),
        ("mpe-spread", {"agents": True}, r"env\.agents is True"),
        ("mpe-spread", {"agents": 0}, "agents is 0"),
        ("foraging", {"size": (8,)}, r"env\.size is \(8,\)"),
        ("foraging", {"sight": "far"}, r"env\.sight is 'far'"),
        ("two-step", {"agents": 3}, "unknown key"),
    ],
)
def test_what_does_not_exist_or_cannot_be_is_refused(name: str, options: dict[str, object], told: str):
    with pytest.raises(ConfigError, match=told) as caught:
        make_env(name, 2, options=options)
    assert "\n" not in str(caught.value)


def test_the_options_of_an_unknown_name_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'memory-cue'"):
        game_options("memory-que")


# ---------------------------------------------------------------------------------------------------- a user's factory
MODULE = '''
from dataclasses import dataclass

from martes.envs.batched import BatchedEnv
from martes.envs.batched.crowd import Crowd

CONSTANT = 3


def returns_game(agents: int = 4):
    """A crowd.

    Args:
        agents: How many.
    """
    return Crowd(agents)


def returns_env(copies, device, agents: int = 4):
    return BatchedEnv(Crowd(agents), copies, device)


def takes_anything(copies, **options):
    seen.append(dict(options))
    return BatchedEnv(Crowd(4), copies)


class Plain:
    """Two agents name the number of the step.

    Args:
        numbers: How many there are.
    """

    def __init__(self, numbers: int = 3):
        self.n_actions = numbers

    def reset(self):
        self.t = 0
        return [[0.0], [0.0]]

    def step(self, actions):
        rewards = [float(action == self.t) for action in actions]
        self.t = (self.t + 1) % self.n_actions
        return [[self.t], [self.t]], rewards, False, {}


class Counted(Plain):
    made = open = 0

    def __init__(self):
        super().__init__()
        Counted.made += 1
        Counted.open += 1

    def close(self):
        Counted.open -= 1


def needs(agents: int):
    return Crowd(agents)


def too_few(agents: int = 4):
    return BatchedEnv(Crowd(agents), 1)


def nothing():
    return {"env": None}


class Half:
    team = 1

    def step(self, action): ...


seen = []
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a user's module in the working folder, which is not on Python's path."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_module.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there")
    yield "users_module"
    sys.modules.pop("users_module", None)


@pytest.mark.parametrize("function", ["returns_game", "returns_env", "takes_anything"])
def test_a_factory_makes_the_environment(module: str, function: str):
    env = make_env("mine", 3, factory=f"{module}:{function}")
    assert env.num_envs == 3
    assert game(env) == Crowd(4)
    assert env.reset(0).start.shape == (3,)


def test_a_factory_gets_its_options_and_copies_and_device(module: str):
    assert game(make_env("mine", 3, factory=f"{module}:returns_game", options={"agents": "6"})) == Crowd(6)
    assert game(make_env("mine", 3, factory=f"{module}:returns_env", options={"agents": 6})) == Crowd(6)
    make_env("mine", 3, factory=f"{module}:takes_anything", options={"colour": "red"})
    assert sys.modules[module].seen == [{"colour": "red"}]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_plain_class_is_a_factory_of_single_copies(module: str, workers: int):
    task = Environment("mine", 3, f"{module}:Plain", {"numbers": 4}, Wrap(time_limit=5), workers)
    with closing(environment(task)) as env:
        assert env.num_envs == 3
        assert env.team.episode_limit == 5
        assert env.team.action["agent"] == Discrete(4)
        env.reset(0)
        steps = [env.step(torch.full((3, 2), t % 4)) for t in range(5)]
        assert all((step.reward == 1).all() for step in steps)
        assert [bool(step.cut.all()) for step in steps] == [False] * 4 + [True]
        assert steps[-1].final is not None
        assert (steps[-1].final["obs"] == 1).all() and (steps[-1].seen["obs"] == 0).all()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"workers": 2}, r"env\.workers is 2, and .*:Spread steps all its copies at once: leave it 0"),
        ({"workers": -1}, r"env\.workers is -1"),
        ({"timeout": 0.0}, r"env\.timeout is 0\.0"),
        ({"wrap": Wrap(against="random", against_agents=("agent_0",))}, "martes.train and martes.evaluate seat them"),
    ],
)
def test_settings_that_would_be_ignored_or_cannot_be_are_refused(values: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        environment(Environment("mpe-spread", 2, **values))


def test_copies_are_closed_that_cannot_be_wrapped(module: str):
    task = Environment("mine", 3, f"{module}:Counted")
    with pytest.raises(ConfigError, match="this team sees no pictures"):
        environment(replace(task, wrap=Wrap(shrink=2)))
    assert sys.modules[module].Counted.open == 0
    environment(task).close()
    assert sys.modules[module].Counted.open == 0


def test_who_lets_workers_step_makes_one_copy_to_ask_what_it_is_and_closes_it(module: str):
    with closing(environment(Environment("mine", 3, f"{module}:Counted", workers=2))) as env:
        env.reset(0)
        here = sys.modules[module].Counted
        assert (here.made, here.open) == (1, 0)


def test_rules_that_are_no_functions_of_tensors_are_not_compiled(module: str):
    with pytest.raises(ConfigError, match=r"env\.compile is true, and the rules of .*:Plain are no functions"):
        environment(Environment("mine", 3, f"{module}:Plain", {"numbers": 4}, compile=True))


def test_a_time_limit_reaches_games_and_is_refused_where_nobody_keeps_it(module: str):
    limited = Environment("mpe-spread", wrap=Wrap(time_limit=7))
    assert environment(limited, 2).team.episode_limit == 7
    assert environment(replace(limited, wrap=Wrap(time_limit=99)), 2).team.episode_limit == 25
    with pytest.raises(ConfigError, match=r"env\.wrap\.time_limit is 7.*let it take `limit`"):
        environment(Environment("mine", 3, f"{module}:returns_env", wrap=Wrap(time_limit=7)))


def test_a_class_of_a_game_is_a_factory():
    env = make_env("mine", 2, factory="martes.envs.batched.crowd:Crowd", options={"agents": 7})
    assert game(env) == Crowd(7)


@pytest.mark.parametrize(
    ("factory", "error", "told"),
    [
        ("users_module", ConfigError, "write it as module:function"),
        (":returns_game", ConfigError, "write it as module:function"),
        ("no_such_module:make", ConfigError, "there is no module 'no_such_module'"),
        ("martes.nothing:make", ConfigError, r"there is no module 'martes\.nothing'"),
        ("users_module:returns_gane", ConfigError, "has no 'returns_gane'; did you mean 'returns_game'"),
        ("users_module:CONSTANT", ConfigError, "is no function or class but 3"),
        ("users_module:needs", ConfigError, "needs the option 'agents'"),
        ("users_module:too_few", EnvError, r"made 1 copies where env\.copies is 3: let it take `copies`"),
        (
            "users_module:nothing",
            EnvError,
            "nothing: dict is no environment that martes knows: .*nor is it a Game or a VectorEnv",
        ),
        ("users_module:Half", EnvError, "Half: Half is no environment.*it lacks reset"),
    ],
)
def test_a_factory_that_is_none_is_refused(module: str, factory: str, error: type[Exception], told: str):
    with pytest.raises(error, match=told) as caught:
        make_env("mine", 3, factory=factory)
    assert "\n" not in str(caught.value)


def test_options_of_a_factory_are_checked_too(module: str):
    with pytest.raises(ConfigError, match=r"'env\.agent'; did you mean 'agents'"):
        make_env("mine", 3, factory=f"{module}:returns_game", options={"agent": 6})
    with pytest.raises(ConfigError, match=r"env\.agents is 'six'"):
        make_env("mine", 3, factory=f"{module}:returns_game", options={"agents": "six"})


def test_what_is_missing_inside_the_users_module_is_the_users_own_error(module: str):
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        make_env("mine", 3, factory="needs_more:make")


# ------------------------------------------------------------------------------------------------- an installed package
@pytest.fixture
def package(tmp_path: Path, module: str) -> None:
    """What pip leaves of a package that declares environments."""
    folder = tmp_path / "my_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        f"[martes.envs]\nmy-crowd = {module}:returns_game\ntwo-step = {module}:returns_game\n"
    )
    sys.path.append(str(tmp_path))


def test_environments_of_installed_packages_have_names_too(package: None):
    assert listed_envs()["my-crowd"].doc == "from the package my-package"
    assert game_options("my-crowd")["agents"].doc == "How many."
    assert game(make_env("my-crowd", 2, options={"agents": 9})) == Crowd(9)
    with pytest.raises(ConfigError, match="did you mean 'my-crowd'"):
        make_env("my-crwd", 2)


def test_a_package_cannot_take_a_name_of_the_library(package: None):
    assert make_env("two-step", 2).team.size == 2
