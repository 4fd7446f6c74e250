"""The subcommands: each is a dataclass whose fields are its options, and which runs when it is called."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from tyro.conf import FlagCreatePairsOff, Positional, Suppress, arg

from martes.cli import tables
from martes.cli.evolve import Evolve
from martes.cli.words import INTERRUPTED, Overrides, typed
from martes.errors import ConfigError, EnvError, MartesError
from martes.presets import DEFAULT

if TYPE_CHECKING:
    from martes.api import Restored
    from martes.experiment import Experiment
    from martes.training.evaluate import Scores

Flag = Annotated[bool, FlagCreatePairsOff]
RunPlace = Annotated[Positional[Path], arg(metavar="RUN")]
Step = Annotated[
    int | None,
    arg(
        metavar="N",
        help="Take the checkpoint that was saved nearest to so many environment steps.",
        help_behavior_hint="(default: the newest)",
    ),
]
Against = Annotated[
    str | None,
    arg(
        metavar="RUN",
        help="Who plays the agents --agents in its place: another run, or random.",
        help_behavior_hint="",
    ),
]
Agents = Annotated[
    tuple[str, ...],
    arg(metavar="NAME...", help="Whom --against plays; else all of that run's own team.", help_behavior_hint=""),
]


@dataclass(frozen=True)
class Train:
    """Train an experiment. Each of its values can be changed: `--algorithm.lr 1e-3`, or `with algorithm.lr=1e-3`."""

    preset: Annotated[Positional[str | None], arg(metavar="[PRESET]", help_behavior_hint=f"(default: {DEFAULT})")] = (
        None
    )
    """<algorithm>/<task>, as `martes list presets` shows."""
    steps: Annotated[str | None, arg(metavar="N", help_behavior_hint="")] = None
    """Environment steps; short for --training.steps."""
    seed: Annotated[str | None, arg(metavar="S", help_behavior_hint="")] = None
    """The one seed; short for --training.seed."""
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """New folder of the run; else runs/<algorithm>-<task>-s<seed>-<time>."""
    resume: Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")] = None
    """Go on with this run, in place of a preset."""
    file: Annotated[Path | None, arg(metavar="YAML", help_behavior_hint="")] = None
    """Values that are taken before those of the command line; a run's config.yaml repeats that run."""
    overrides: Suppress[Overrides] = ()

    def __call__(self) -> int:
        """Trains, and says where the results lie."""
        from martes import api

        changes = typed(*self.overrides, ("training.steps", self.steps), ("training.seed", self.seed))
        if self.resume is None:
            preset = self.preset or DEFAULT
            experiment = composed(preset, self.file, changes)
            folder, origin = api.new_folder(experiment, self.run_dir, preset), None
        else:
            for name, told in (("preset", "preset"), ("run_dir", "--run-dir"), ("file", "--file")):
                if getattr(self, name) is not None:
                    raise ConfigError(f"--resume {self.resume} goes on with that run as it is: leave out {told}")
            folder, origin = api.located(self.resume)
            experiment = api.continued(folder, changes, origin)
        run = api.trained(experiment, folder, origin)
        print(f"run: {folder.path}")
        if run.result is not None and not run.result.is_finished:
            print(f"stopped at step {run.result.steps:,} and saved; go on: martes train --resume {folder.path}")
            return INTERRUPTED
        for name, path in (("learning curve", folder.learning_curve), ("replay", folder.replay)):
            if path.exists():
                print(f"{name}: {path}")
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Score a trained policy on fresh test episodes: mean return and 95 % interval, of team, groups and agents."""

    run: RunPlace
    """Run folder, or one of its checkpoints."""
    episodes: int = 100
    """Test episodes."""
    step: Step = None
    save_replay: Flag = False
    """Let the game save its own replay (StarCraft II does), of one copy that plays every episode."""
    record: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the episodes to a data set (.safetensors, or .h5), to learn from: training.data=FILE."""
    against: Against = None
    agents: Agents = ()
    greedy: Flag = False
    """Take the most probable action. Without this or --sample: as in the run's own evaluations."""
    sample: Flag = False
    """Draw actions as in training."""
    seed: int = 0
    """Seed of the test episodes."""
    device: str = "cpu"
    """Where to compute."""

    def __call__(self) -> int:
        """Prints a table of returns."""
        from martes.envs.single import is_recording, save_replay
        from martes.training.data_sets import refuse_unwritable

        if self.record is not None:
            refuse_unwritable(self.record)
        found = _restored(self, 1 if self.save_replay else max(min(self.episodes, 64), 1))
        with closing(found.env):
            if self.save_replay and not is_recording(found.env):
                task = found.experiment.env.factory or found.experiment.env.name
                raise EnvError(f"{task} records no replay of its own: martes play {self.run} draws a GIF")
            greedy = _is_greedy(self, found.experiment)
            self._show(found, self._scored(found, greedy), greedy)
            if self.save_replay:
                save_replay(found.env)
                print("replay: saved by the game, where it keeps its own (env.replay_dir, or Replays below SC2PATH)")
        return 0

    def _scored(self, found: "Restored", greedy: bool) -> "Scores":
        from martes import api
        from martes.training.data_sets import write_data

        if self.record is None:
            return api.scored(found, self.episodes, greedy, self.seed)
        scores, played = api.recorded(found, self.episodes, greedy, self.seed)
        write_data(played, self.record)
        return scores

    def _show(self, found: "Restored", scores: "Scores", greedy: bool) -> None:
        from martes.report.intervals import interval

        team = found.env.team
        members = {"team": range(team.size)} | ({} if len(team.groups) < 2 else dict(team.groups))
        if 1 < team.size <= 32:
            members |= {name: (index,) for index, name in enumerate(team.agents)}
        how = f"{self.episodes} episodes, {'greedy' if greedy else 'actions drawn'}"
        table = tables.table("", "return", "95 % interval")
        for name, indices in members.items():
            mean, low, high = interval(scores.agent_returns[:, list(indices)].sum(1).tolist())
            table.add_row(name, f"{mean:.4g}", f"{low:.4g} to {high:.4g}")
        for name, value in {"length": float(scores.lengths.double().mean()), **scores.stats}.items():
            table.add_row(name, f"{value:.4g}", "")
        tables.console().print(tables.titled(f"{self.run}, step {found.steps:,}: {how}", table))


@dataclass(frozen=True)
class Play:
    """Watch a trained policy: write a GIF or MP4, and open a window where there is a display."""

    run: RunPlace
    """Run folder, or one of its checkpoints."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: <RUN>/replay.gif)")] = None
    """Name of the film, ending with .gif or .mp4."""
    episodes: int = 3
    """Episodes; of a task without an end, 200 steps each."""
    step: Step = None
    against: Against = None
    agents: Agents = ()
    greedy: Flag = False
    """Take the most probable action. Without this or --sample: as in the run's own evaluations."""
    sample: Flag = False
    """Draw actions as in training."""
    seed: int = 0
    """Seed of the episodes."""
    window: bool = True
    """Open a window, where there is a display."""
    device: str = "cpu"
    """Where to compute."""

    def __call__(self) -> int:
        """Writes the film, and shows it."""
        from martes import api, report

        folder, _ = api.located(self.run)
        film = self.output or folder.replay
        report.film_writer(film)  # refuses it now, not after the play
        found = _restored(self)
        with closing(found.env):
            frames = api.filmed(found, self.episodes, _is_greedy(self, found.experiment), self.seed)
        print(f"replay: {report.save_replay(frames, film)}")
        if self.window and report.has_display():
            report.show_replay(frames, str(self.run))
        return 0


@dataclass(frozen=True)
class Sweep:
    """Train presets from several seeds. Runs that are finished are not run again: the same command goes on."""

    presets: Annotated[Positional[tuple[str, ...]], arg(metavar="PRESET...")]
    """<algorithm>/<task>, as `martes list presets` shows."""
    seeds: Annotated[tuple[int, ...], arg(metavar="S...")] = (3,)
    """The seeds; a single number is how many of 0, 1, 2, ..."""
    processes: int = 1
    """Runs at a time, each in a process of its own; the cores are divided among them."""
    run_dir: Path = Path("runs/sweep")
    """Folder of the sweep."""
    again: Flag = False
    """Run what failed once more."""
    overrides: Suppress[Overrides] = ()

    def __call__(self) -> int:
        """Trains all, and prints a table of what they came to."""
        from martes import api, report
        from martes.training.sweep import Job, sweep

        seeds = range(self.seeds[0]) if len(self.seeds) == 1 else self.seeds
        jobs = [
            Job(preset, composed(preset, None, typed(*self.overrides, ("training.seed", str(seed)))))
            for preset in self.presets
            for seed in seeds
        ]
        if not jobs:
            raise ConfigError("nothing to run: give at least one preset and one seed")
        entries = sweep(jobs, self.run_dir, self.processes, again=self.again, work=api.swept)
        is_finished = all(entry.status == "finished" for entry in entries.values())
        if is_finished:
            print(report.results_table(report.records(*(self.run_dir / job.key for job in jobs))))
        print(f"sweep: {self.run_dir}" + ("" if is_finished else " (not finished: the same command goes on)"))
        return 0 if is_finished else MartesError.exit_code


@dataclass(frozen=True)
class List:
    """Show what there is: algorithms, environments, presets, and which extras are installed."""

    what: Annotated[Positional[Literal["all", "algorithms", "envs", "presets", "extras"]], arg(metavar="WHAT")] = "all"
    """algorithms, envs, presets or extras."""

    def __call__(self) -> int:
        """Prints tables."""
        listed = tables.LISTED.values() if self.what == "all" else (tables.LISTED[self.what],)
        for table in listed:
            tables.console().print(table())
        return 0


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine: ratios to the original environments, acting, training, windows; or scaling."""

    names: Annotated[Positional[tuple[str, ...]], arg(metavar="NAME...", help_behavior_hint="(default: all)")] = ()
    """Which measurements; or scaling: speed and memory of Sable, MAT and MAPPO as teams and rollouts grow; or agilerl:
    martes beside AgileRL, with one thread."""
    repeats: int = 5
    """How often each is repeated; medians are shown."""
    threads: int = 0
    """Threads of torch; 0: one for each core."""
    output: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the results, too: Markdown to a name ending with .md (scaling: and .png, .json beside it), else JSON."""
    agents: Annotated[tuple[int, ...], arg(metavar="N...")] = (2, 8, 32, 128, 512, 1024)
    """Of scaling: sizes of the team."""
    limit: float = 120.0
    """Of scaling: seconds for each number; what takes longer is ended, and the table says so."""
    device: str = "cpu"
    """Of scaling: where to compute."""
    python: Annotated[Path | None, arg(metavar="PYTHON", help_behavior_hint="")] = None
    """Of agilerl: the interpreter of an environment that has agilerl, peft and mpe2."""

    def __call__(self) -> int:
        """Prints the measurements."""
        from martes import bench

        for name in (bench.SCALING, bench.AGILERL):
            if name in self.names and len(self.names) > 1:
                raise ConfigError(f"{name} is told apart from the others: measure it alone")
        if bench.AGILERL in self.names:
            bench.beside_agilerl(self.python, self.repeats, self.output, tables.console())
            return 0
        if bench.SCALING in self.names:
            bounds = bench.Bounds(self.repeats, self.limit, self.threads, self.device)
            bench.scaled(self.agents, bounds, self.output, tables.console())
            return 0
        results = bench.measured(self.names, self.repeats, self.threads, tables.console())
        if self.output is not None:
            bench.write(results, self.threads, self.output)
            print(f"written: {self.output}")
        return 0


@dataclass(frozen=True)
class Report:
    """Compare runs: learning curves with intervals as a picture, tables in Markdown, interquartile means over tasks."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN...")] = (Path("runs"),)
    """Run folders, or folders with runs below them."""
    output: Annotated[Path, arg(metavar="PNG")] = Path("learning_curves.png")
    """Name of the picture."""
    metric: str = "evaluation/return"
    """What is drawn and compared."""
    random: bool = True
    """Play each task at random, too, for comparison."""

    def __call__(self) -> int:
        """Draws the curves and prints the table."""
        from martes import api, report

        records = report.records(*self.runs)
        chance = api.chances(records) if self.random and self.metric == "evaluation/return" else {}
        picture = report.learning_curve(records, self.output, chance, self.metric)
        print(report.results_table(records, chance, self.metric))
        if (found := report.over_tasks(records, chance, self.metric)) is not None:
            print(report.table_over_tasks(found))
            pooled = picture.with_stem(f"{picture.stem}-over-tasks")
            print(f"interquartile means: {report.picture_over_tasks(found, pooled)}")
        print(f"learning curves: {picture}")
        return 0


@dataclass(frozen=True)
class Check:
    """Test what a game needs beside its Python package, and say the cure for what is missing."""

    what: Annotated[Positional[Literal["starcraft"]], arg(metavar="GAME")]
    """starcraft."""

    def __call__(self) -> int:
        """Prints a table; 0 where nothing is missing."""
        from martes.envs.adapters.starcraft import checks

        table, found = tables.table("", "found", "cure"), checks()
        for each in found:
            table.add_row(each.subject, each.found, each.cure)
        tables.console().print(tables.titled("StarCraft II", table))
        is_complete = not any(each.cure for each in found)
        print("all is there: martes train qmix/smac:3m" if is_complete else "without it: martes train qmix/smax-3m")
        return 0 if is_complete else EnvError.exit_code


Command = Train | Evolve | Evaluate | Play | Sweep | List | Check | Bench | Report
COMMANDS: dict[str, type[Command]] = {each.__name__.lower(): each for each in get_args(Command)}


def composed(preset: str, file: Path | None, changes: list[tuple[str, object]]) -> "Experiment":
    """The experiment of a preset, changed by a file and then by single values.

    Raises ConfigError where the file cannot be read, and for all that is unknown or cannot be.
    """
    from martes.experiment import Experiment
    from martes.presets import PRESETS

    experiment = PRESETS[preset]
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"cannot read {file}: {error}") from error
        experiment = Experiment.from_yaml(text, experiment, str(file))
    return experiment.changed(changes)


def _restored(asked: Evaluate | Play, copies: int = 1) -> "Restored":
    """The policy of the checkpoint that is asked for and its task, the guest in its seats."""
    from martes import api

    if asked.agents and asked.against is None:
        raise ConfigError("--agents names whom --against plays: give both")
    guest = None if asked.against is None else api.Guest(asked.against, asked.agents)
    place = asked.run if asked.step is None else api.saved_near(asked.run, asked.step)
    return api.restored(place, copies, asked.device, guest)


def _is_greedy(asked: Evaluate | Play, experiment: "Experiment") -> bool:
    if asked.greedy and asked.sample:
        raise ConfigError("--greedy and --sample exclude each other: give one of them")
    return asked.greedy or (experiment.evaluation.greedy and not asked.sample)
