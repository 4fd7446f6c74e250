"""MAgent2: hundreds that fight, hunt and die."""

from importlib import import_module

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from martes.data import Image, Vector
from martes.envs.adapters.pettingzoo import magent2
from tests.envs.adapters.played import Played, check_single

pytestmark = pytest.mark.extras


@pytest.mark.parametrize(("task", "options"), [("battle_v4", {"map_size": 12}), ("adversarial_pursuit_v4", {})])
def test_the_contract_is_kept(task: str, options: dict[str, object]) -> None:
    check_single(lambda: magent2(task, **options), draws=True, steps=60)


@pytest.mark.parametrize("task", ["battle_v4", "adversarial_pursuit_v4"])
def test_what_is_adapted_keeps_pettingzoo_s_own_law(task: str) -> None:
    parallel_api_test(import_module(f"magent2.environments.{task}").parallel_env(map_size=20), 30)


def test_facts() -> None:
    battle = magent2("battle_v4", map_size=45).team
    assert battle.size == 162
    assert {name: len(members) for name, members in battle.groups.items()} == {"red": 81, "blue": 81}
    assert battle.observation["red"] == Image((5, 13, 13), battle.observation["red"].dtype)
    assert battle.state == Vector(45 * 45 * 5)
    assert battle.episode_limit == 1000
    hunt = magent2("adversarial_pursuit_v4", state=False).team
    assert hunt.state is None
    assert hunt.observation == {"predator": Vector(500), "prey": Vector(405)}, "pictures of two sizes are vectors"


WAIT = 6
STEP = {-2: 4, -1: 5, 1: 7, 2: 8}
"""Fields to the right -> the move."""
STRIKE = {-1: 16, 1: 17}
"""Which neighbour is hit -> the blow."""


def approached(one: Played) -> int:
    """Where the blues stand when the reds have come close: 1 to their right, -1 to their left."""
    field = one.env._env.unwrapped
    for _ in range(9):
        red, blue = (field.env.get_pos(handle)[0, 0] for handle in field.handles)
        gap = int(blue) - int(red)
        if abs(gap) == 1:
            return gap
        move = STEP[int(np.sign(gap)) * (1 if abs(gap) == 2 else 2)]
        one.step([move, move, WAIT, WAIT])
    raise AssertionError("they do not meet")


def test_a_battle_to_the_death() -> None:
    one = Played(magent2("battle_v4", map_size=12))
    assert one.env.team.agents == ("red_0", "red_1", "blue_0", "blue_1")
    one.reset(0)
    gap = approached(one)
    blow = STRIKE[-gap]
    shown, deaths = [], []
    while not shown or not shown[-1].is_cut:
        is_first_dead = bool(shown) and not shown[-1]["agent_mask"][0]
        shown.append(one.step([WAIT, WAIT, *((WAIT, blow) if is_first_dead else (blow, WAIT))]))
        deaths.append((shown[-1]["discount"] == 0).tolist())
        assert len(shown) < 20
    first = deaths.index([True, False, False, False])
    assert deaths == [[False] * 4] * first + [deaths[first]] + [[False] * 4] * (len(deaths) - first - 2) + [[True] * 4]
    for step, each in enumerate(shown[:-1]):
        assert each["agent_mask"].tolist() == [step < first, True, True, True]
        assert each["obs"].any((1, 2, 3)).tolist() == [step < first, True, True, True]
    fields = [each["state"].reshape(12, 12, 5).sum((0, 1)) for each in shown]
    assert [each[1::2].tolist() for each in fields] == [
        *[[2, 2]] * first,
        *[[1, 2]] * (len(shown) - first - 1),
        [0, 2],  # its own state would fail here: a side has died out
    ]
    assert shown[-1]["reward"][3] > 4, "to kill pays"


def test_its_map_is_the_task_s_own() -> None:
    one, draw = Played(magent2("adversarial_pursuit_v4", map_size=30)), np.random.default_rng(0)
    shown = one.reset(0)
    for _ in range(5):
        assert np.array_equal(shown["state"], one.env._env.state().ravel())
        shown = one.step(draw.integers(9, size=one.env.team.size))
