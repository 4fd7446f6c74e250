"""Tasks of packages that speak PettingZoo, by name."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from mpe2 import simple_speaker_listener_v4, simple_spread_v3, simple_tag_v3
from pettingzoo import ParallelEnv
from pettingzoo.test import parallel_api_test

from martes.data import Continuous, Discrete, Image, Vector
from martes.envs.adapters.pettingzoo import mpe2, pettingzoo, tasks
from martes.errors import ConfigError, MissingExtra
from tests.envs.adapters.played import Played, check_single

MPE = ("spread_v3", "speaker_listener_v4", "tag_v3", "reference_v3", "adversary_v3", "crypto_v3")


@pytest.mark.parametrize("task", MPE)
def test_mpe_keeps_the_contract(task: str) -> None:
    check_single(lambda: mpe2(f"simple_{task}"), draws=True, steps=60)


def test_real_actions_keep_the_contract() -> None:
    check_single(lambda: mpe2("simple_speaker_listener_v4", continuous_actions=True), draws=True, steps=30)


@pytest.mark.parametrize("task", ["sisl.pursuit_v5", "butterfly.knights_archers_zombies_v11"])
def test_pettingzoo_s_own_keep_the_contract(task: str) -> None:
    check_single(lambda: pettingzoo(f"pettingzoo.{task}"), draws=True, steps=20)


def test_facts_of_tasks() -> None:
    speaking = mpe2("simple_speaker_listener_v4").team
    assert speaking.agents == ("speaker_0", "listener_0")
    assert speaking.observation_sizes == (3, 11)
    assert [speaking.action[group] for group in speaking.group_of] == [Discrete(3), Discrete(5)]
    assert speaking.state == Vector(14)
    assert speaking.episode_limit == 25
    tag = mpe2("simple_tag_v3", state=False, max_cycles=7).team
    assert dict(tag.groups) == {"adversary": (0, 1, 2), "agent": (3,)}
    assert tag.state is None
    assert tag.episode_limit == 7
    pursuit = pettingzoo("pettingzoo.sisl.pursuit_v5").team
    assert pursuit.observation["pursuer"].shape == (3, 7, 7)
    assert isinstance(pursuit.observation["pursuer"], Image)
    assert mpe2("simple_spread_v3", continuous_actions=True).team.action["agent"] == Continuous((0,) * 5, (1,) * 5)


@pytest.mark.parametrize(
    "make", [simple_spread_v3, simple_speaker_listener_v4, simple_tag_v3], ids=lambda it: it.__name__
)
@pytest.mark.parametrize("continuous", [False, True])
def test_number_for_number_as_the_task_itself(make: object, continuous: bool) -> None:
    raw = make.parallel_env(continuous_actions=continuous)
    one = Played(mpe2(make.__name__.partition(".")[2], continuous_actions=continuous))
    assert_alike(raw, one, continuous)


def assert_alike(raw: ParallelEnv, one: Played, continuous: bool) -> None:
    """Both show and pay the same over two episodes, to float32."""
    draw = np.random.default_rng(3)
    team, steps = one.env.team, 0
    for seed in (5, 6):
        seen, shown = raw.reset(seed=seed)[0], one.reset(seed)
        while raw.agents:
            action = draw.random((team.size, 5), np.float32) if continuous else draw.integers(3, size=team.size)
            sizes = [len(each) if continuous else 1 for each in team.action_sizes]
            given = {
                agent: action[place, : sizes[place]] if continuous else int(action[place])
                for place, agent in enumerate(team.agents)
            }
            seen, reward, terminated, truncated, _ = raw.step(given)
            shown = one.step(action[:, : max(sizes)] if continuous else action)
            for place, (agent, size) in enumerate(zip(team.agents, team.observation_sizes, strict=True)):
                assert np.array_equal(shown["obs"][place, :size], seen[agent])
                assert not shown["obs"][place, size:].any()
                assert shown["reward"][place] == np.float32(reward[agent])
                assert shown["discount"][place] == (not terminated[agent])
            assert np.array_equal(shown["state"], raw.state())
            assert shown.is_cut == any(truncated.values())
            steps += 1
        assert shown.is_cut
    assert steps == 50


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("task", tasks("mpe2"))
def test_what_is_adapted_keeps_pettingzoo_s_own_law(task: str, continuous: bool) -> None:
    parallel_api_test(import_module(task).parallel_env(continuous_actions=continuous), 30)


def test_tasks_are_found_without_importing_them() -> None:
    assert "mpe2.simple_world_comm_v3" in tasks("mpe2")
    assert "pettingzoo.classic.connect_four_v3" in tasks("pettingzoo")
    assert "pettingzoo.classic.texas_holdem_v4" not in sys.modules
    assert tasks("no_such_package") == []


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("mpe2.simple_spred_v3", "no task 'mpe2.simple_spred_v3'; did you mean 'mpe2.simple_spread_v3'.*simple_tag_v3"),
        ("mpe2.simple_spread_v2", "did you mean 'mpe2.simple_spread_v3'"),
        ("simple_spread_v3", "did you mean 'mpe2.simple_spread_v3'"),
        ("pettingzoo.clasic.connect_four_v3", "did you mean 'pettingzoo.classic.connect_four_v3'"),
        ("pettingzoo.mpe.simple_spread_v3", "pettingzoo.mpe.simple_spread_v3: MPE has been moved .* MPE2"),
        ("pettingzoo.utils", "pettingzoo.utils has neither parallel_env nor env"),
    ],
)
def test_unknown_tasks_name_the_nearest(task: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        pettingzoo(task)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mpe2.simple_spread_v3 cannot be made with \{'n': 3\}: .*'n'"):
        mpe2("simple_spread_v3", n=3)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def env(**options): return 3", "strange_v1 made int, which is neither a ParallelEnv nor an AECEnv"),
        ("def env(**options): import no_such_thing", "strange_v1 cannot be made with no options: .*no_such_thing"),
        ("import no_such_thing", "strange_v1 needs no_such_thing, which is not installed: pip install no_such_thing"),
    ],
)
def test_modules_of_one_s_own_that_make_nothing(
    body: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange_v1.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strange_v1", raising=False)
    with pytest.raises(ConfigError, match=told):
        pettingzoo("strange_v1")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The package of the test's parameter is not installed."""

    class Nowhere:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == request.param:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [each for each in sys.modules if each.partition(".")[0] == request.param]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Nowhere(), *sys.meta_path])


@pytest.mark.parametrize("absent", ["magent2"], indirect=True)
@pytest.mark.usefixtures("absent")
def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingExtra, match=r"magent2 is not installed: pip install 'martes\[magent\]'"):
        pettingzoo("magent2.environments.battle_v4")


@pytest.mark.parametrize("absent", ["Box2D"], indirect=True)
@pytest.mark.usefixtures("absent")
def test_what_a_task_lacks_is_named_with_its_cure() -> None:
    told = r"pettingzoo.sisl.multiwalker_v9 needs Box2D, which is not installed: pip install 'pettingzoo\[sisl\]'"
    with pytest.raises(ConfigError, match=told):
        pettingzoo("pettingzoo.sisl.multiwalker_v9")
