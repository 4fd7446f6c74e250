"""Data sets: episodes end to end, without a row that nobody lived through, in and out of a replay."""

import pytest
import torch

from martes.data import Discrete, MultiDiscrete, Schema, TeamSpec, Vector, Workspace
from martes.data.data_set import as_data_set, data_set, returns_of, steps_of
from martes.data.experience import Episodes, Replayed, Transitions
from martes.errors import DataError

TEAM = TeamSpec(("a_0", "a_1"), {"a": (0, 1)}, {"a": Vector(2)}, {"a": Discrete(50)})


def episode(first: int, steps: int, terminal: bool = True) -> dict[str, torch.Tensor]:
    """Every number tells the moment; agent 1 sees the moment + 100."""
    moment = torch.arange(first, first + steps + 1)[:, None] + torch.tensor([0, 100])
    discount = torch.ones(steps, 2)
    discount[-1] = not terminal
    seen = torch.stack((moment, -moment), -1).float()
    return {"obs": seen, "action": moment[:-1] % 50, "reward": moment[:-1] / 10, "discount": discount}


LENGTHS = [3, 1, 4]
DATA = data_set(TEAM, [episode(10 * n, steps, n != 1) for n, steps in enumerate(LENGTHS)])


def test_rows_are_steps_or_last_observations() -> None:
    assert (DATA.time, DATA.envs) == (sum(LENGTHS) + len(LENGTHS) - 1, 1)
    assert DATA["obs"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 10, 11, 20, 21, 22, 23, 24]
    assert DATA["start"].squeeze(1).long().tolist() == [1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]
    assert DATA["cut"].squeeze(1).long().tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 0, 1]
    assert DATA.mask[:, 0, 0].long().tolist() == [1, 1, 1, 0, 1, 0, 1, 1, 1, 1]
    assert int(DATA.mask[..., 0].sum()) == sum(LENGTHS)


def test_the_window_of_a_data_set_has_no_rows_in_between() -> None:
    window, final = steps_of(DATA)
    assert window["obs"][:, 0, 0, 0].tolist() == [0, 1, 2, 10, 20, 21, 22, 23, 24]
    assert window["cut"].squeeze(1).long().tolist() == [0, 0, 1, 1, 0, 0, 0, 1]
    assert torch.equal(window["start"][1:], window["cut"])
    assert final["obs"][:, 0, 0].tolist() == [3, 11, 24]
    assert bool(window.mask.all())


def test_returns_are_sums_of_episodes() -> None:
    assert torch.allclose(returns_of(DATA)[:, 0], torch.tensor([0.3, 1.0, 8.6]))
    assert torch.allclose(returns_of(DATA)[:, 1], torch.tensor([30.3, 11.0, 48.6]))


def experience(of: Transitions | Episodes) -> Replayed:
    made = Replayed(Schema.from_team(TEAM), torch.Generator().manual_seed(0), of, 100)
    made.take(DATA)
    return made


def test_transitions_never_cross_episodes_and_all_are_drawn() -> None:
    batches = list(experience(Transitions(8)).due(80))
    pairs = {(int(b["obs"][0, i, 0, 0]), int(b["obs"][1, i, 0, 0])) for b in batches for i in range(8)}
    assert pairs == {(0, 1), (1, 2), (2, 3), (10, 11), (20, 21), (21, 22), (22, 23), (23, 24)}
    assert all(bool(b["counted"].all()) for b in batches)


def test_whole_episodes_end_with_what_was_really_seen() -> None:
    (batch,) = experience(Episodes(3)).due(1)
    for i, first in enumerate(batch["obs"][0, :, 0, 0].tolist()):
        steps = LENGTHS[int(first) // 10]
        assert batch["obs"][: steps + 1, i, 0, 0].tolist() == [first + t for t in range(steps + 1)]
        assert int(batch["counted"][:, i].sum()) == steps
        assert batch["discount"][steps - 1, i].tolist() == [float(first == 10)] * 2


def test_a_state_leaves_the_rows_out_and_goes_on_alike() -> None:
    one, other = experience(Transitions(4)), experience(Transitions(4))
    list(one.due(3))
    state = one.state_dict()
    assert not any(name.startswith("replay") for name in state)
    other.load_state_dict(state)
    for mine, its in zip(one.due(6), other.due(6), strict=True):
        assert torch.equal(mine["place"], its["place"])


def test_it_is_a_workspace_on_disk(tmp_path) -> None:
    DATA.save(tmp_path / "data.safetensors")
    loaded = Workspace.load(tmp_path / "data.safetensors")
    assert all(torch.equal(loaded[name], DATA[name]) for name in DATA.names)
    assert torch.equal(returns_of(loaded), returns_of(DATA))
    again = as_data_set(TEAM, {name: DATA[name] for name in DATA.names})
    assert torch.equal(again.mask, DATA.mask)


def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(DataError, match="the episodes lack 'reward'"):
        data_set(TEAM, [{name: part for name, part in episode(0, 2).items() if name != "reward"}])
    with pytest.raises(DataError, match=r"'obs' of an episode of 2 steps is \[2, 2, 2\]: it must be \[3, 2, 2\]"):
        data_set(TEAM, [episode(0, 2) | {"obs": torch.zeros(2, 2, 2)}])
    nothing = {name: part[: len(part) - 2] for name, part in episode(0, 2).items()}
    for number, empty in enumerate([[nothing], [episode(0, 2), nothing], [episode(0, 2), episode(0, 1), {}]]):
        with pytest.raises(DataError, match=f"episode {number} of the data set has no 'action', or none"):
            data_set(TEAM, empty)
    with pytest.raises(DataError, match="2 environments is no data set"):
        steps_of(Workspace(Schema.from_team(TEAM), time=4, envs=2))
    with pytest.raises(DataError, match="give at least one"):
        data_set(TEAM, [])
    with pytest.raises(DataError, match="or give more data, or a smaller batch"):
        list(experience(Episodes(4)).due(5))


@pytest.mark.parametrize(
    ("action", "told"),
    [
        (torch.tensor([[0.0, 0.5]]), r"'action' of the data set holds 0.5, which torch.int64 cannot"),
        (torch.tensor([[1, 50]]), "a_1 did 50 in row 0 of the data set: it has the actions 0 to 49"),
        (torch.tensor([[-1, 0]]), "a_0 did -1 in row 0"),
    ],
)
def test_what_nobody_can_do_is_refused(action: torch.Tensor, told: str) -> None:
    with pytest.raises(DataError, match=told):
        data_set(TEAM, [episode(0, 1) | {"action": action}])
    with pytest.raises(DataError, match=told):
        as_data_set(TEAM, {name: DATA[name] for name in DATA.names} | {"action": action.expand(10, 1, 2)})


def test_choices_of_the_absent_and_of_padding_do_not_matter() -> None:
    spaces = {"a_0": MultiDiscrete((2, 3)), "b_0": MultiDiscrete((2,))}
    team = TeamSpec.of_agents(dict.fromkeys(spaces, Vector(1)), spaces)
    given = {"obs": torch.zeros(2, 2, 1), "reward": torch.zeros(1, 2), "action": torch.tensor([[[1, 2], [1, 9]]])}
    assert data_set(team, [given])["action"].tolist() == [[[[1, 2], [1, 9]]]]
    wrong = given | {"action": torch.tensor([[[1, 3], [1, 9]]])}
    with pytest.raises(DataError, match="a_0 did 3 in row 0 of the data set: it has the actions 0 to 2"):
        data_set(team, [wrong])
    data_set(team, [wrong | {"agent_mask": torch.tensor([[False, True]] * 2)}])
