"""Who plays some agents in a policy's place: in evaluation as a guest, in training as an opponent held fixed.

The game is `climbing`: one agent chooses the row, the other the column, and both earn the entry.
"""

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

import martes
from martes import api
from martes.cli import main
from martes.envs.catalogue import make_env
from martes.envs.opponents import Trained, Uniform
from martes.errors import CheckpointError, ConfigError
from martes.training import checkpoint

TABLE = ((11, -30, 0), (-30, 7, 6), (0, 0, 5))
TINY = {"env.copies": 8, "algorithm.rollout": 5, "evaluation.episodes": 8, "logging.progress": "none"}
ENDS = ("weight", "bias")
SMALL = {"algorithm.network.hidden": (8,), **TINY}


def resolute(folder: Path, action: int, **values: object) -> Path:
    """A run whose agents always take one action."""
    run = martes.train("ippo/climbing", run_dir=folder, steps=40, **SMALL | values)
    tree = checkpoint.load(run.folder.newest_checkpoint())
    weights = tree["learner"]["policy"]
    weight, bias = (next(value for name, value in weights.items() if name.endswith(f"head.{end}")) for end in ENDS)
    weight.zero_()
    bias.zero_()[..., action] = 50
    checkpoint.save(run.folder.checkpoints, tree, 40, keep=1)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`one` always takes action 1; so does `two` action 2, whose agents also see their number and what they did last;
    `left` learned beside `two` and plays row alone, always with action 0."""
    folder = tmp_path_factory.mktemp("rivals")
    two = resolute(folder / "two", 2, **{"env.wrap.agent_id": True, "env.wrap.last_action": True})
    beside = {"env.wrap.against": str(two), "env.wrap.against_agents": ("column",)}
    return {"one": resolute(folder / "one", 1), "two": two, "left": resolute(folder / "left", 0, **beside)}


def weights_of(run: Path) -> dict[str, Tensor]:
    return checkpoint.load(api.RunFolder(run).newest_checkpoint())["learner"]["policy"]


def returns(run: Path, guest: api.Guest | None = None, episodes: int = 20) -> set[tuple[float, ...]]:
    """What the agents earned, episode by episode."""
    found = api.restored(run, 8, guest=guest)
    with closing(found.env):
        scores = api.scored(found, episodes, greedy=True, seed=0)
    return {tuple(each) for each in scores.agent_returns.tolist()}


# ---------------------------------------------------------------------------------------------------------- as a guest
@pytest.mark.parametrize(
    ("agents", "entry"),
    [(("column",), TABLE[1][2]), (("row",), TABLE[2][1])],
)
def test_another_run_plays_the_seats_that_it_is_given(runs, agents, entry):
    assert returns(runs["one"]) == {(TABLE[1][1],) * 2}
    assert returns(runs["one"], api.Guest(str(runs["two"]), agents)) == {(entry, entry)}


def test_a_guest_without_seats_plays_all_of_its_own_team(runs):
    assert returns(runs["one"], api.Guest(str(runs["left"]))) == {(TABLE[0][1],) * 2}


def test_a_random_guest_plays_every_action(runs):
    found = returns(runs["one"], api.Guest("random", ("column",)), episodes=60)
    assert found == {(entry, entry) for entry in TABLE[1]}


def test_a_run_against_opponents_is_scored_against_them(runs):
    assert returns(runs["left"]) == {(TABLE[0][2],)}


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, str]:
    """Row -> mean return, of the table that the command prints."""
    assert main(["evaluate", *map(str, words), "--episodes", "9", "--greedy"]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1] for words in lines if words and words[0] in ("team", "row", "column")}


def test_the_command_shows_the_returns_of_both_sides(runs, capsys):
    one, two = runs["one"], runs["two"]
    assert evaluated(capsys, one) == {"team": "14", "row": "7", "column": "7"}
    against = evaluated(capsys, one, "--against", two, "--agents", "column")
    assert against == {"team": "12", "row": "6", "column": "6"}
    assert evaluated(capsys, one, "--agents", "row", "--against", two)["team"] == "0"
    random = evaluated(capsys, one, "--against", "random", "--agents", "column")
    assert random.keys() == against.keys()
    assert random["team"] != against["team"]


def test_a_film_shows_the_guest_at_play(runs, tmp_path):
    film, films = tmp_path / "film.gif", []
    for guest in ([], [], ["--against", str(runs["two"]), "--agents", "column"]):
        words = ["--output", str(film), "--episodes", "1", "--greedy", "--no-window", *guest]
        assert main(["play", str(runs["one"]), *words]) == 0
        films.append(film.read_bytes())
    assert films[0] == films[1] != films[2]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--agents", "column"], 2, "--agents names whom --against plays: give both"),
        (["--against", "random"], 2, "plays every agent and leaves none: name those that it is to play (--agents,"),
        (["--against", "{two}"], 2, "plays every agent and leaves none: name those that it is to play (--agents,"),
        (["--against", "random", "--agents", "colunm"], 2, "no agent 'colunm'; did you mean 'column'"),
        (["--against", "{left}", "--agents", "column"], 2, "the rival does not play 'column'"),
        (["--against", "runs/none", "--agents", "column"], 5, "no run in runs/none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["evaluate", "play"])
def test_what_cannot_be_is_one_line(runs, command, words, code, told, capsys):
    assert main([command, str(runs["one"]), *(word.format(**runs) for word in words)]) == code
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_rival_of_another_task_is_refused(runs, tmp_path):
    martes.train("ippo/two-step", run_dir=tmp_path, steps=40, **SMALL)
    with pytest.raises(ConfigError, match="the task has no agent 'agent_0'; known: column, row"):
        api.restored(runs["one"], guest=api.Guest(str(tmp_path), ("column",)))


def test_a_rival_is_greedy_where_its_own_evaluations_are(runs, tmp_path):
    drawing = martes.train("ippo/climbing", run_dir=tmp_path, steps=40, **SMALL, **{"evaluation.greedy": False})
    with closing(make_env("climbing", 200)) as env:
        step = env.reset(0)
        rival, two = api.rival(str(drawing.folder.path), env.team), api.rival(str(runs["two"]), env.team)
        assert isinstance(rival, Trained)
        assert isinstance(api.rival("random", env.team), Uniform)
        assert set(rival.first(step, 0).flatten().tolist()) == {0, 1, 2}, "weights as they begin: nearly uniform"
        assert torch.equal(rival.first(step, 1), rival.first(step, 1))
        assert not torch.equal(rival.first(step, 1), rival.first(step, 2))
        assert two.first(step, 0).unique().tolist() == [2]


# -------------------------------------------------------------------------------------------------------- in training
def test_opponents_stay_as_they_are_while_the_rest_learns(runs, tmp_path, monkeypatch):
    two, seated = runs["two"], []
    make = api.rival

    def watched(*arguments: object) -> Trained:
        seated.append(make(*arguments))
        return seated[-1]

    monkeypatch.setattr(api, "rival", watched)
    before, began = weights_of(two), {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    values = {"env.wrap.against": str(two), "env.wrap.against_agents": ("column",), "algorithm.lr": 0.05}
    run = martes.train("mappo/climbing", run_dir=tmp_path, steps=800, **SMALL | values)
    assert run.policy().team.agents == ("row",)
    assert len(seated) >= 2, "training and evaluation"
    for rival in seated:
        after = rival._policy.state_dict()
        assert any(name.endswith("head.bias") for name in after)
        assert all(torch.equal(weight, before[name]) for name, weight in after.items())
    assert {path: path.read_bytes() for path in two.rglob("*") if path.is_file()} == began
    told = [row["evaluation/return"] for row in run.metrics() if row["kind"] == "evaluation"]
    assert told[-1] == max(row[2] for row in TABLE), "the best answer to action 2"
    assert all(row.get("train/return", 0) >= 0 for row in run.metrics()), "no entry of column 2 is below 0"


def test_the_command_takes_opponents(runs, tmp_path):
    words = ["train", "ippo/climbing", "with", f"env.wrap.against={runs['two']}", "env.wrap.against_agents=column"]
    tiny = ["env.copies=8", "algorithm.rollout=5", "evaluation.episodes=8", "logging.progress=none"]
    assert main([*words, *tiny, "training.steps=40", "--run-dir", str(tmp_path / "run")]) == 0
    assert martes.load(tmp_path / "run").team.agents == ("row",)


def test_a_run_against_opponents_goes_on_as_if_it_had_not_stopped(tmp_path):
    drawn = {"evaluation.greedy": False, "algorithm.network.memory_size": 8}
    martes.train("ippo-gru/two-step", run_dir=tmp_path / "rival", steps=40, **SMALL | drawn)
    values = SMALL | {"env.wrap.against": str(tmp_path / "rival"), "env.wrap.against_agents": ("agent_0",)}
    martes.train("ippo-gru/two-step", run_dir=tmp_path / "whole", steps=240, **values)
    martes.train("ippo-gru/two-step", run_dir=tmp_path / "parts", steps=120, **values)
    martes.train(resume=tmp_path / "parts", steps=240)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(ConfigError, match=r"env\.wrap\.against decides what a run learns"):
        martes.train(resume=tmp_path / "parts", **{"env.wrap.against": "random"})


def test_a_rival_that_is_gone_is_named(runs, tmp_path):
    values = SMALL | {"env.wrap.against": str(tmp_path / "gone"), "env.wrap.against_agents": ("column",)}
    with pytest.raises(CheckpointError, match=r"no run in .*gone"):
        martes.train("ippo/climbing", run_dir=tmp_path / "run", steps=40, **values)
