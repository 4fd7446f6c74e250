"""`martes.evolve` and `martes evolve`: configured, run, found again, resumed, compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import martes
from martes import api
from martes.cli import main
from martes.errors import CheckpointError, ConfigError
from martes.evolution.settings import Chances
from martes.evolving import Evolving, continued, located
from martes.presets import PRESETS
from martes.training.rows import read_rows

ROOT = Path(__file__).parents[1]
TINY = {
    "env.copies": 4,
    "algorithm.rollout": 5,
    "algorithm.network.hidden": (8,),
    "evaluation.episodes": 4,
    "evaluation.every": 40,
    "logging.tensorboard": False,
}
WORDS = [f"{path}={'8' if isinstance(value, tuple) else value}" for path, value in TINY.items()]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory):
    return martes.evolve(
        "ippo/two-step", population=2, steps=80, seed=1, run_dir=tmp_path_factory.mktemp("evolved") / "a", **TINY
    )


# ------------------------------------------------------------------------------------------------------- configuration
def test_everything_is_configured_by_path_and_survives_a_file():
    evolving = Evolving(PRESETS["qmix/two-step"]).changed(
        {
            "evolution.population": 6,
            "evolution.space.algorithm.lr": (1e-4, 1e-2),
            "evolution.space.algorithm.batch": "8,64,1.5,0.5",
            "evolution.mutation.parameters": 0.5,
            "algorithm.batch": 16,
        }
    )
    assert evolving.evolution.space == {"algorithm.lr": (1e-4, 1e-2), "algorithm.batch": (8, 64, 1.5, 0.5)}
    assert evolving.evolution.mutation == Chances(parameters=0.5)
    assert evolving.experiment.algorithm.batch == 16
    assert Evolving.from_yaml(evolving.to_yaml()) == evolving
    assert Evolving.from_yaml(PRESETS["qmix/two-step"].to_yaml()) == Evolving(PRESETS["qmix/two-step"])


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("evolution.populaton", 4, "did you mean 'population'"),
        ("evolution.population", 0, "evolution.population is 0: it must be an integer >= 1"),
        ("evolution.selection", "roulette", "tournament or truncation or random"),
        ("evolution.space.algorithm.lr", "fast", "is 'fast': it must be a finite number"),
        ("evolution.against_agents", ("a",), "give both"),
        ("evolution.workers", -1, "evolution.workers is -1"),
    ],
)
def test_what_cannot_be_is_refused(path: str, value: object, told: str):
    with pytest.raises(ConfigError, match=told):
        Evolving(PRESETS["ippo/two-step"]).changed({path: value})


# --------------------------------------------------------------------------------------------------------------- a run
def test_a_population_is_found_again_by_every_command(result, capsys):
    path = result.folder.path
    assert result.is_finished
    assert len(result.members) == 2
    assert len(result.history) == 4
    assert Evolving.from_yaml((path / "config.yaml").read_text()).evolution.population == 2
    policy = martes.load(path)
    assert policy.team.size == 2
    scores = api.evaluate(path / "members" / "1", episodes=4)
    assert len(scores.returns) == 4
    assert main(["evaluate", str(path), "--episodes", "4"]) == 0
    assert "step 80" in capsys.readouterr().out
    assert Image.open(result.folder.picture).width > 300
    assert [row["step"] for row in read_rows(path / "metrics.jsonl") if row["kind"] == "evaluation"] == [40, 80]


def test_a_member_is_evaluated_as_its_fitness_says(result):
    """What is saved is what was scored: the same episodes give the same return."""
    from contextlib import closing

    from martes.training.evaluate import evaluate
    from martes.training.seeding import seed_of

    for place, member in enumerate(result.members):
        found = api.restored(result.folder.path / "members" / str(place), copies=4)
        with closing(found.env):
            scores = evaluate(found.policy, found.env, 4, seed_of(1, "evaluation", 1), greedy=False)
        assert float(scores.returns.mean()) == member.fitness[-1]


def test_the_elite_trains_on_alone(result):
    run = martes.train(resume=result.folder.elite.path, steps=120)
    assert run.result is not None
    assert run.result.is_finished
    assert run.result.steps == 120


def test_a_resumed_population_goes_on(result, tmp_path):
    half = martes.evolve("ippo/two-step", population=2, steps=40, seed=1, run_dir=tmp_path, **TINY)
    assert len(half.history) == 2
    whole = martes.evolve(resume=tmp_path, steps=80)
    assert whole.history == result.history
    for one, other in zip(whole.members, result.members, strict=True):
        policies = one.learner["policy"], other.learner["policy"]
        assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])
    with pytest.raises(ConfigError, match=r"algorithm\.lr decides what comes out"):
        continued(located(tmp_path), {"algorithm.lr": 1e-3})


def test_a_refused_resume_changes_no_config(result):
    folder = result.folder
    before = folder.run.config.read_text()
    with folder.run.claimed(), pytest.raises(CheckpointError, match="another process is training"):
        martes.evolve(resume=folder.path, steps=999)
    assert folder.run.config.read_text() == before


def test_where_there_is_no_population_it_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no population in"):
        martes.evolve(resume=tmp_path)


@pytest.mark.parametrize("selection", ["truncation", "random"])
def test_other_strategies_run_over_the_same_interface(selection: str, tmp_path):
    result = martes.evolve(
        "qmix/two-step",
        population=2,
        steps=40,
        run_dir=tmp_path,
        **TINY | {"evolution.selection": selection, "evaluation.every": 20},
    )
    kinds = [life.change["kind"] for life in result.history]
    assert kinds == ["none"] * 4 if selection == "random" else "hyperparameter" in kinds
    assert len({life.values["algorithm.lr"] for life in result.history}) >= 2


def test_a_role_is_evolved_against_fixed_opponents(result, tmp_path):
    """In a competitive task the fitness is that of one role, in games against a policy that stays as it is."""
    tag = dict(population=2, steps=40, **TINY)
    fixed = martes.evolve("ippo/mpe-tag", run_dir=tmp_path / "fixed", **tag)
    roles = fixed.members[0].team.groups
    prey = next(name for name in roles if len(roles[name]) == 1)
    agent = fixed.members[0].team.agents[roles[prey][0]]
    evolved = martes.evolve(
        "ippo/mpe-tag",
        run_dir=tmp_path / "hunters",
        **tag,
        **{
            "evolution.fitness": next(name for name in roles if name != prey),
            "evolution.against": str(fixed.folder.elite.path),
            "evolution.against_agents": (agent,),
        },
    )
    alone = martes.evolve("ippo/mpe-tag", run_dir=tmp_path / "team", **tag)
    for one, other in zip(evolved.members, alone.members, strict=True):
        a, b = one.learner["policy"], other.learner["policy"]
        assert all(torch.equal(a[name], b[name]) for name in a), "who is met in test episodes changes no learning"
    assert [each.fitness for each in evolved.members] != [each.fitness for each in alone.members]


# -------------------------------------------------------------------------------------------------------- command line
def test_the_command_says_what_it_made_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "run"
    words = ["evolve", "ippo/two-step", "--population", "2", "--steps", "40", "--run-dir", str(folder), "with", *WORDS]
    assert main([*words, "evolution.space.algorithm.lr=1e-4,1e-2"]) == 0
    out = capsys.readouterr().out
    assert "searched: algorithm.lr 0.0001 to 0.01" in out
    assert f"population: {folder}" in out
    assert f"elite: {folder / 'elite'}" in out
    assert main(["evolve", "--resume", str(folder), "training.steps=80"]) == 0
    lives = [json.loads(line) for line in (folder / "lineage.jsonl").read_text().splitlines()]
    assert [each["generation"] for each in lives] == [0, 0, 1, 1]
    assert main(words) == ConfigError.exit_code
    assert "holds a run" in capsys.readouterr().err
    assert main(["evolve", "--resume", str(folder), "--run-dir", str(tmp_path)]) == ConfigError.exit_code
    assert "leave out --run-dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evolution.tournament=3"], "it must be 1 to evolution.population, 2"),
        (["evolution.space.algorithm.lr=1e-2,1e-1"], "outside of its bounds 0.01 to 0.1"),
        (["evolution.fitness=nobody"], "nobody is called 'nobody'"),
        (["evolution.space.algorithm.rollout=4,64", "algorithm.rollout=128"], "algorithm.rollout is 128, outside"),
    ],
)
def test_bad_input_is_one_line(words: list[str], told: str, tmp_path, capsys):
    given = [each for each in WORDS if each.partition("=")[0] not in {word.partition("=")[0] for word in words}]
    command = ["evolve", "ippo/two-step", "--population", "2", "--steps", "40", "--run-dir", str(tmp_path / "run")]
    assert main([*command, *given, *words]) == ConfigError.exit_code
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


# ------------------------------------------------------------------------------------------------------------ examples
@pytest.mark.parametrize(
    ("name", "words", "told"),
    [("evolve_in_one_call", ["400"], "LoadedPolicy"), ("evolve_own_loop", ["300"], "4   19 from")],
)
def test_the_example_runs(name: str, words: list[str], told: str, tmp_path):
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert told in ran.stdout, ran.stdout
