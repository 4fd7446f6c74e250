import copy
import pickle
from typing import Any

import pytest
import torch

from martes.data import (
    Continuous,
    Discrete,
    Image,
    MultiDiscrete,
    TeamSpec,
    Vector,
    groups_from_names,
)
from martes.errors import ConfigError


def speaker_listener(**facts: Any) -> TeamSpec:
    return TeamSpec(
        **{
            "agents": ("speaker_0", "listener_0", "listener_1"),
            "groups": {"speaker": (0,), "listener": (1, 2)},
            "observation": {"speaker": Vector(3), "listener": Vector(11)},
            "action": {"speaker": Discrete(3), "listener": Discrete(5)},
            **facts,
        }
    )


def test_groups_share_a_name_up_to_the_last_underscore():
    assert groups_from_names(("red_scout_0", "red_scout_1", "boss")) == {"red_scout": (0, 1), "boss": (2,)}


def test_facts_along_the_agent_axis():
    team = speaker_listener()
    assert team.size == 3
    assert team.group_of == ("speaker", "listener", "listener")
    assert team.action_kind is Discrete
    assert team.observation_sizes == (3, 11, 11)
    assert team.action_sizes == ((3,), (5,), (5,))
    assert dict(team.parts) == {"obs": Vector(11)}  # padded to the widest
    assert team.legal_actions.tolist() == [[True] * 3 + [False] * 2, [True] * 5, [True] * 5]


def test_multi_discrete_actions_are_padded_in_both_directions():
    team = speaker_listener(action={"speaker": MultiDiscrete((2, 4)), "listener": MultiDiscrete((3, 2, 2))})
    legal = team.legal_actions
    assert legal.shape == (3, 3, 4)
    assert legal[0].tolist() == [[True, True, False, False], [True] * 4, [False] * 4]
    assert legal[1].sum(1).tolist() == [3, 2, 2]


def test_continuous_actions_have_bounds_of_their_own_and_padding_between_minus_one_and_one():
    boxes = {"speaker": Continuous((-2.0,), (0.0,)), "listener": Continuous((0.0, 1.0), (5.0, 2.0))}
    team = speaker_listener(action=boxes)
    low, high = team.bounds
    assert low.tolist() == [[-2.0, -1.0], [0.0, 1.0], [0.0, 1.0]]
    assert high.tolist() == [[0.0, 1.0], [5.0, 2.0], [5.0, 2.0]]
    assert team.legal_actions.tolist() == [[True, False], [True, True], [True, True]]


def test_parts_of_a_dict_observation_are_fields():
    sees = {"camera": Image((1, 4, 4)), "vector": Vector(2)}
    team = speaker_listener(observation={"speaker": sees, "listener": {**sees, "vector": Vector(5)}})
    assert dict(team.parts) == {"obs/camera": Image((1, 4, 4)), "obs/vector": Vector(5)}
    assert team.observation_sizes == (2, 5, 5)


@pytest.mark.parametrize(
    "observation",
    [
        {"speaker": Image((1, 4, 4)), "listener": Image((3, 4, 4))},
        {"speaker": Image((1, 4, 4)), "listener": Vector(3)},
        {"speaker": {"camera": Image((1, 4, 4))}, "listener": {"camera": Image((1, 4, 4)), "vector": Vector(3)}},
    ],
)
def test_what_cannot_be_padded_is_refused(observation: Any):
    with pytest.raises(ConfigError, match=r"obs.* cannot be padded: give every group the same"):
        _ = speaker_listener(observation=observation).parts


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"groups": {"speaker": (0,), "listener": (1,)}}, r"do not place each of the 3 agents.*0\.\.2"),
        ({"groups": {"speaker": (0, 1), "listener": (1, 2)}}, "exactly once"),
        ({"groups": {"speaker": (0,), "listener": (1, 7)}}, "exactly once"),
        ({"groups": {"speaker": (0, 1, 2), "listener": ()}}, "every group a member"),
        ({"observation": {"speaker": Vector(3)}}, r"observation names the groups \['speaker'\].*'listener'"),
        ({"action": {"speaker": Discrete(3), "walker": Discrete(3)}}, "action names the groups"),
        ({"agents": ("a", "b", "a")}, "bear one name"),
        (
            {"action": {"speaker": Discrete(3), "listener": Continuous((0.0,), (1.0,))}},
            r"mixes kinds of action: Discrete \(speaker\) and Continuous \(listener\)",
        ),
    ],
)
def test_contradictions_are_refused_by_name(facts: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        speaker_listener(**facts)


def test_a_team_from_its_agents():
    team = TeamSpec.of_agents(
        {"speaker_0": Vector(3), "listener_0": Vector(11), "listener_1": Vector(11)},
        {"speaker_0": Discrete(3), "listener_0": Discrete(5), "listener_1": Discrete(5)},
    )
    assert team == speaker_listener()


@pytest.mark.parametrize("kind", ["observation", "action"])
def test_unequal_members_of_a_group_are_named(kind: str):
    sees = {"ant_0": Vector(3), "ant_1": Vector(4 if kind == "observation" else 3)}
    acts = {"ant_0": Discrete(2), "ant_1": Discrete(3 if kind == "action" else 2)}
    with pytest.raises(
        ConfigError, match=rf"'ant'.*unequal {kind} spaces: ant_0 has .*, ant_1 has .*groups="
    ) as caught:
        TeamSpec.of_agents(sees, acts)
    assert "\n" not in str(caught.value)
    by_agent = TeamSpec.of_agents(sees, acts, {"first": (0,), "second": (1,)})  # the cure that it names
    assert by_agent.group_of == ("first", "second")


def test_an_agent_without_an_action_is_refused():
    with pytest.raises(ConfigError, match=r"action \['ant_0'\]"):
        TeamSpec.of_agents({"ant_0": Vector(3), "ant_1": Vector(3)}, {"ant_0": Discrete(2)})


def test_groups_that_point_nowhere_are_refused_before_they_are_read():
    with pytest.raises(ConfigError, match="exactly once"):
        TeamSpec.of_agents({"ant_0": Vector(3)}, {"ant_0": Discrete(2)}, {"ant": (0, 3)})


def test_facts_cannot_be_changed_but_copied_and_pickled():
    team = speaker_listener(state=Vector(4), episode_limit=25, masks_actions=True)
    with pytest.raises(TypeError):
        team.groups["speaker"] = ()  # pyright: ignore
    _ = team.legal_actions
    for other in (copy.deepcopy(team), pickle.loads(pickle.dumps(team))):
        assert other == team
        assert torch.equal(other.legal_actions, team.legal_actions)


@pytest.mark.parametrize("low, high", [((), ()), ((0.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((-torch.inf,), (0.0,))])
def test_bounds_that_are_none_are_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"Continuous\(.*\): (give a low|each low must be finite and below its high)"):
        Continuous(low, high)


def test_who_can_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Discrete\(0\): there must be an action"):
        Discrete(0)
    for sizes in ((), (2, 0)):
        with pytest.raises(ConfigError, match="each choice needs an action"):
            MultiDiscrete(sizes)
