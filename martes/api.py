"""The Python face: train an experiment, load a run, score it, watch it, read its numbers."""

import itertools
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import strftime

import torch
from torch import Tensor

from martes.data import TeamSpec, VectorEnv, Workspace
from martes.envs.catalogue import environment
from martes.envs.opponents import Opponents, Rival, Trained, Uniform
from martes.envs.settings import Environment
from martes.envs.wrappers import Wrap
from martes.errors import CheckpointError, ConfigError, MartesError, nearest
from martes.evolution.folder import ELITE
from martes.experiment import Experiment, read_tree
from martes.networks import TemporalModule
from martes.presets import DEFAULT, PRESETS
from martes.report import Interval, Record, learning_curve, random_play, read_runs, records, replay_frames, save_replay
from martes.report.labels import algorithm_of
from martes.report.records import flat, task_of
from martes.report.replay import Picture
from martes.training import checkpoint, loop
from martes.training.evaluate import Scores
from martes.training.evaluate import evaluate as scores_of
from martes.training.loaded import LoadedPolicy
from martes.training.log import Log
from martes.training.recorder import Recorder
from martes.training.rows import Row, read_rows
from martes.training.run import RunFolder, write_text
from martes.training.seeding import seed_of
from martes.training.settings import Plan

__all__ = ["LoadedPolicy", "Run", "evaluate", "load", "read_runs", "train"]

Place = str | os.PathLike[str]
_SHORT = {"steps": "training.steps", "seed": "training.seed"}
_MAY_CHANGE = re.compile(r"training\.(?!seed|data)|evaluation\.|logging\.|env\.(workers|timeout|start_method|compile)$")
"""What a resumed run may be told anew: nothing that decides what is learned from one step to the next."""
_RULES = re.compile(r"env\.(options\.|wrap\.(time_limit|reward_scale|team_reward|against))")
"""What decides how much anybody may earn in a task."""


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: RunFolder
    experiment: Experiment
    result: loop.Result | None = None
    """How training ended; None for a run that was only opened."""

    def policy(self, device: str = "cpu") -> LoadedPolicy:
        """The policy of the newest checkpoint."""
        return load(self.folder.path, device)

    def metrics(self) -> list[Row]:
        """The rows of metrics.jsonl; `read_runs` makes a data frame of those of many runs."""
        return read_rows(self.folder.metrics)


def train(
    preset: str | Experiment = DEFAULT, *, run_dir: Place | None = None, resume: Place | None = None, **values: object
) -> Run:
    """The run of a preset, or of your own experiment, trained to its end or as far as Ctrl-C let it come.

    `values` change the experiment: steps=, seed=, or any path, as in **{"algorithm.lr": 1e-3}. It writes to a new
    folder below runs/, or to `run_dir`. `resume` goes on with that run, whatever the preset, from its newest checkpoint
    (or from the one that it names); then only `training.` (but not seed and data), `evaluation.`, `logging.` and who
    steps the copies (`env.workers`, `env.timeout`, `env.start_method`, `env.compile`) may change.
    Raises ConfigError for what is unknown or cannot be, and where the folder holds a run; CheckpointError where it
    cannot be written or read.
    """
    changes = {_SHORT.get(name, name): value for name, value in values.items()}
    if resume is not None:
        folder, place = located(resume)
        return trained(continued(folder, changes, place), folder, place)
    experiment = (preset if isinstance(preset, Experiment) else PRESETS[preset]).changed(changes)
    return trained(experiment, new_folder(experiment, run_dir, preset if isinstance(preset, str) else ""))


def continued(
    folder: RunFolder, changes: Mapping[str, object] | list[tuple[str, object]], origin: Path | None = None
) -> Experiment:
    """The experiment of a run that is to go on from the checkpoint `origin`, changed.

    Raises ConfigError for a change of what is learned, and for an end that lies behind.
    """
    before = experiment_of(folder)
    sections = {each.name for each in fields(Experiment)}
    for path in dict(changes):
        if path.partition(".")[0] in sections and not _MAY_CHANGE.match(path):
            raise ConfigError(f"{path} decides what a run learns and cannot change on the way: start another run")
    experiment = before.changed(changes)
    made, steps = 0 if origin is None else checkpoint.step_of(origin), experiment.training.steps
    if steps < min(made, before.training.steps):
        raise ConfigError(f"training.steps is {steps}, but {folder.path} has made {made}: give more, or leave it out")
    return experiment


def new_folder(experiment: Experiment, run_dir: Place | None = None, preset: str = "") -> RunFolder:
    """The folder `run_dir`, or a new one named by algorithm, task, seed, time. Raises ConfigError if it holds a run."""
    if run_dir is not None:
        folder = RunFolder(run_dir)
        if folder.has_begun:
            raise ConfigError(f"{run_dir} holds a run: go on with it (--resume {run_dir}), or name another folder")
        return folder
    algorithm = preset.partition("/")[0] or name_of(experiment)
    title = f"{algorithm} {experiment.env.factory or experiment.env.name} s{experiment.training.seed}"
    name = re.sub(r"[^\w.]+", "-", f"{title} {strftime('%Y%m%d %H%M%S')}")
    for count in itertools.count(1):
        path = Path("runs", name if count == 1 else f"{name}-{count}")
        try:
            path.mkdir(parents=True)
            return RunFolder(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(f"cannot make {path}: {error.strerror}; name a folder with --run-dir") from error
    raise AssertionError("counting never ends")


def name_of(experiment: Experiment) -> str:
    """What its algorithm is called: as the preset that it is nearest to."""
    return algorithm_of(dict(flat(experiment.tree())))


def trained(experiment: Experiment, folder: RunFolder, origin: Path | None = None) -> Run:
    """The run of an experiment in its folder, config.yaml and figures included; it goes on from `origin`, if given."""
    task = experiment.env.factory or experiment.env.name
    title = f"{name_of(experiment)} on {task}, seed {experiment.training.seed}"
    steps = experiment.training.steps
    greedy = experiment.evaluation.greedy
    logged = Log(folder.path, experiment.logging, steps, title, greedy)
    with described(folder, experiment.to_yaml()), logged as log:
        _refuse_absent(experiment.training.device, "training.device")
        result = loop.train(experiment, folder, log, origin, made_env)
        if result.is_finished:
            for draw in (draw_learning_curve, draw_replay):
                try:
                    draw(folder)
                except Exception as error:  # whatever a task's own pictures do, the run is good
                    log.message(f"{draw.__name__.removeprefix('draw_')} was not drawn: {error}")
    return Run(folder, experiment, result)


@contextmanager
def described(folder: RunFolder, config: str) -> Iterator[None]:
    """Writes config.yaml. Who fails before anything is saved leaves the folder, and a config.yaml there, as they were.

    Raises CheckpointError where another process trains in the folder; then nothing was written.
    """
    with folder.claimed():
        origin = folder.newest_checkpoint()
        before = folder.config.read_text(encoding="utf-8") if folder.config.exists() else None
        write_text(folder.config, config)
    try:
        yield
    except BaseException:
        if origin is None:
            folder.forget(before)
        elif before is not None and folder.newest_checkpoint() == origin:
            write_text(folder.config, before)
        raise


def swept(name: str, plan: Plan, folder: RunFolder) -> loop.Result:
    """The result of one run of a sweep, config.yaml and figures included."""
    assert isinstance(plan, Experiment)
    result = trained(plan, folder).result
    assert result is not None
    return result


def _refuse_absent(device: str, name: str = "device") -> None:
    """Raises ConfigError where there is no such device; nothing is begun on those that there are."""
    kind, _, index = device.partition(":")
    count = getattr(getattr(torch, kind, None), "device_count", int)()  # 0 of a kind that torch knows by name alone
    if index not in ("", *map(str, range(count))) or not count:
        raise ConfigError(f"{name} is {device!r}, and there is none on this machine: take cpu")


# ------------------------------------------------------------------------------------------------------- runs on disk
def located(run: Place) -> tuple[RunFolder, Path | None]:
    """The folder of a run and its newest checkpoint, `run` being that folder, or one of its checkpoints.

    Raises CheckpointError where there is no run.
    """
    path = Path(run)
    if path.parent.name == "checkpoints" and path.is_dir():
        return RunFolder(path.parent.parent), path
    folder = RunFolder(path / ELITE if (path / ELITE).is_dir() else path)  # of a population, the best
    if not folder.config.exists():
        beside = [each.parent.name for each in path.parent.glob("*/config.yaml")] if path.parent.is_dir() else []
        near = nearest(path.name, beside) if beside else ""
        raise CheckpointError(f"no run in {path}: there is no {folder.config.name}{near}")
    return folder, folder.newest_checkpoint()


def saved_near(run: Place, step: int) -> Path:
    """The checkpoint of a run that was saved nearest to a step. Raises CheckpointError where there is none yet."""
    folder, named = located(run)
    if named is not None and named == Path(run):
        raise ConfigError(f"{run} is one checkpoint: name its run, {folder.path}, to choose one by its step")
    found = checkpoint.nearest_to(folder.checkpoints, step)
    if found is None:
        raise _nothing_saved(folder)
    return found


def _nothing_saved(folder: RunFolder) -> CheckpointError:
    return CheckpointError(f"{folder.path} has no checkpoint yet: let it train on (--resume {folder.path})")


def experiment_of(folder: RunFolder) -> Experiment:
    """What config.yaml of a run says. Raises CheckpointError where it cannot be read, ConfigError where it is none."""
    try:
        return Experiment.from_yaml(folder.config.read_text(encoding="utf-8"), source=str(folder.config))
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"cannot read {folder.config}: {error}") from error


@dataclass(frozen=True)
class Guest:
    """Who plays some agents of a task in place of the policy that is scored."""

    run: str
    """Folder of a run, or `random`."""
    agents: tuple[str, ...] = ()
    """Whom it plays; none given: all of its own team."""


@dataclass(frozen=True)
class Restored:
    """A trained policy together with fresh copies of its task."""

    experiment: Experiment
    policy: TemporalModule
    env: VectorEnv
    steps: int
    """Environment steps that it was trained for."""


def restored(run: Place, copies: int = 1, device: str = "cpu", guest: Guest | None = None) -> Restored:
    """The policy of a run, or of one of its checkpoints, and its task, where a guest may be seated.

    Raises CheckpointError where there is none, or another's.
    """
    folder, path = located(run)
    experiment = experiment_of(folder)
    if path is None:
        raise _nothing_saved(folder)
    weights = _weights(path)
    _refuse_absent(device)
    env = made_env(experiment.env, copies, device, guest)
    policy = experiment.algorithm.learner(env.team, torch.Generator(device)).policy
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds no policy of the experiment in {folder.config}: {error}") from error
    return Restored(experiment, policy, env, checkpoint.step_of(path))


def _weights(path: Path) -> dict[str, Tensor]:
    """The weights of the policy in a checkpoint: what a learner's `state_dict` has under `policy`."""
    match checkpoint.load(path):
        case {"learner": {"policy": dict() as weights}}:
            return {str(name): weight for name, weight in weights.items() if isinstance(weight, Tensor)}
    raise CheckpointError(f"{path} holds no policy: a learner's state_dict() puts its weights under 'policy'")


def made_env(task: Environment, copies: int, device: str = "cpu", guest: Guest | None = None) -> VectorEnv:
    """Copies of a task, its opponents seated; a guest's actions are forced, so that returns tell of all agents."""

    def opposed(env: VectorEnv) -> VectorEnv:
        if task.wrap.against is not None:
            env = Opponents(env, rival(task.wrap.against, env.team, device), task.wrap.against_agents)
        if guest is not None:
            env = Opponents(env, rival(guest.run, env.team, device), guest.agents, is_seated=True)
        return env

    return environment(task, copies, device, opposed)


def rival(run: str, team: TeamSpec, device: str = "cpu") -> Rival:
    """Who plays as a run's policy does, greedy or not as in its own evaluations; `random` draws legal actions."""
    if run == "random":
        return Uniform(team)
    found = restored(run, device=device)
    task, wrap = found.experiment.env, found.experiment.env.wrap
    bare = replace(task, wrap=Wrap(against=wrap.against, against_agents=wrap.against_agents))
    with closing(found.env), closing(made_env(bare, 1, device)) as untouched:
        actor, greedy = found.policy.part_for("action"), found.experiment.evaluation.greedy
        return Trained(actor, untouched.team, wrap, greedy=greedy, device=device)


def load(run: Place, device: str = "cpu", seed: int = 0) -> LoadedPolicy:
    """The policy of a run, or of one of its checkpoints, to act with; `seed` decides what it draws when not greedy.

    Raises CheckpointError where there is none, or where it is damaged or foreign.
    """
    found = restored(run)
    found.env.close()
    return LoadedPolicy(found.policy, found.env.team, seed).to(device)


def evaluate(run: Place, episodes: int = 100, greedy: bool | None = None, seed: int = 0, device: str = "cpu") -> Scores:
    """The scores of fresh test episodes of a run, greedy or not as in its own evaluations unless told."""
    found = restored(run, max(min(episodes, 64), 1), device)
    with closing(found.env):
        return scored(found, episodes, found.experiment.evaluation.greedy if greedy is None else greedy, seed)


def scored(found: Restored, episodes: int, greedy: bool, seed: int) -> Scores:
    """The scores of test episodes of a restored policy; its environment stays open."""
    return scores_of(found.policy, found.env, episodes, seed_of(seed, "evaluate"), greedy)


def recorded(found: Restored, episodes: int, greedy: bool, seed: int) -> tuple[Scores, Workspace]:
    """The scores of test episodes of a restored policy, and the data set of these episodes."""
    recorder = Recorder(found.env)
    scores = scores_of(found.policy, recorder, episodes, seed_of(seed, "evaluate"), greedy)
    return scores, recorder.data(episodes)


# ------------------------------------------------------------------------------------------------------------ figures
def draw_learning_curve(folder: RunFolder) -> Path:
    """The path of a run's learning curve, random play beside it."""
    runs = records(folder.path)
    return learning_curve(runs, folder.learning_curve, chances(runs, experiment_of(folder).evaluation.episodes))


def chances(runs: Iterable[Record], episodes: int = 1000) -> dict[str, Interval]:
    """Name of a task -> what random play comes to there, for each task of these runs.

    A task that cannot be made from what config.yaml says, or that some runs play by other rules than the others, is
    left out, and named in a warning.
    """
    ways: dict[str, dict[tuple[object, ...], Path]] = {}
    for run in runs:
        rules = tuple(sorted((path, str(value)) for path, value in run.config.items() if _RULES.match(path)))
        ways.setdefault(task_of(run), {})[rules] = run.folder
    found: dict[str, Interval] = {}
    for task, (folder, *others) in ((task, way.values()) for task, way in ways.items()):
        try:
            if others:
                raise ConfigError(f"{folder} and {others[0]} play it by different rules; report on them one by one")
            with closing(made_env(_env_of(RunFolder(folder)), copies=min(episodes, 64))) as env:
                found[task] = random_play(env, episodes)
        except MartesError as error:
            warnings.warn(f"{task} was not played at random: {error}", stacklevel=2)
    return found


def _env_of(folder: RunFolder) -> Environment:
    """The task that config.yaml names, whoever wrote the rest of it: a loop of one's own has an algorithm of its own.

    Raises ConfigError where it names none, or one that cannot be.
    """
    tree = read_tree(folder.config.read_text(encoding="utf-8"), str(folder.config))
    if "env" not in tree:
        raise ConfigError(f"{folder.config} names no task (env.name)")
    return Experiment.from_tree({"env": tree["env"]}, replace(PRESETS[DEFAULT], env=Environment())).env


def draw_replay(folder: RunFolder) -> Path:
    """The path of a GIF of the run's policy at play."""
    found = restored(folder.path)
    with closing(found.env):
        return save_replay(filmed(found, 3, found.experiment.evaluation.greedy, 0), folder.replay)


def filmed(found: Restored, episodes: int, greedy: bool, seed: int) -> list[Picture]:
    """Pictures of a restored policy at play; its environment stays open. Raises ConfigError for no episode at all."""
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}: it must be at least 1")
    steps = episodes * (found.env.team.episode_limit or 200)
    return replay_frames(found.policy, found.env, steps, greedy, seed_of(seed, "play"), episodes)
