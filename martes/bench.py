"""How fast martes is on this machine, and how much faster than what it stands in for: `martes bench`."""

import json
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.table import Table

from martes.algorithms.ppo import PPO, PPOLearner
from martes.data import Schema, VectorEnv, Workspace
from martes.envs.catalogue import make_env
from martes.errors import ConfigError, MissingExtra, nearest, require
from martes.networks import Chain, Network, act, replay
from martes.training.collect import Collector
from martes.training.process import cores, reuse_memory, threads

Side = Callable[[int], int]
"""Does n pieces of work and returns how many units (env-steps, passes) that were."""

SECONDS = 0.25
"""The least time of one timed piece of work."""
LENGTHS = (25, 50, 100)
"""Steps of the windows that are learned from."""


METHOD = f"""\
The sides of a ratio take turns in one process with the same threads. Each piece of work is sized to take at least
{SECONDS} s, which also warms it up, and is then timed once a repeat; shown are the median and the range of the repeats.
Random actions are drawn beforehand. An env-step is one step of one copy of an environment, the whole team together.
"""


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    name: str
    values: tuple[float, ...]
    """One a repeat; none where a package is missing."""
    target: float
    """What is to be reached at least."""
    is_ratio: bool = True
    """Times faster, or env-steps a second."""
    note: str = ""
    """Why nothing was measured."""

    @property
    def median(self) -> float | None:
        """The middle value; None where nothing was measured."""
        return median(self.values) if self.values else None

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, median, range, target, and whether it is reached."""
        if self.median is None:
            return self.name, "-", "-", self._shown(self.target), self.note
        ends = f"{self._shown(min(self.values))} to {self._shown(max(self.values))}"
        reached = "yes" if self.median >= self.target else "no"
        return self.name, self._shown(self.median), ends, self._shown(self.target), reached

    def _shown(self, value: float) -> str:
        return f"{value:,.1f}x" if self.is_ratio else f"{value:,.0f}/s"


HEADS = ("measurement", "median", "range", "target", "reached")


def measured(names: Sequence[str], repeats: int, thread_count: int, console: Console) -> list[Measurement]:
    """The measurements of these names, or all; a table of them is printed.

    Raises ConfigError for an unknown name, or less than one repeat.
    """
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"no measurement {name!r}{nearest(name, MEASURES)}")
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}: it must be at least 1")
    results: list[Measurement] = []
    reuse_memory()  # as every run does
    with threads(thread_count):
        for name in names or MEASURES:
            with console.status(f"measuring {name}"):
                results += MEASURES[name](repeats)
    table = Table(box=None, pad_edge=False)
    for index, head in enumerate(HEADS):
        table.add_column(head, justify="right" if 0 < index < 4 else "left")
    for each in results:
        table.add_row(*each.cells)
    console.print(machine(thread_count), table)
    return results


def markdown(results: Iterable[Measurement], thread_count: int) -> str:
    """A page of the measurements, and of how they were made."""
    rows = [HEADS, ("---", *["---:"] * 3, "---"), *(each.cells for each in results)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    command = "```bash no-run\nmartes bench --output docs/benchmarks.md\n```"
    return f"# Benchmarks\n\nMade by\n\n{command}\n\non {machine(thread_count)}.\n\n{METHOD}\n{table}"


def as_json(results: Iterable[Measurement], thread_count: int) -> str:
    """The measurements, every repeat of them, as JSON."""
    rows = [asdict(each) | {"median": each.median} for each in results]
    return json.dumps({"machine": machine(thread_count), "measurements": rows}, indent=2) + "\n"


def machine(thread_count: int) -> str:
    """What the measurements were made on."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {cores()} cores, {thread_count or cores()} threads, torch {torch.__version__}"


# ------------------------------------------------------------------------------------------------------------- timing
def rates(sides: Mapping[str, Side], repeats: int) -> dict[str, list[float]]:
    """Units a second of each side, one a repeat, the sides taking turns."""
    sizes = {name: _size(side) for name, side in sides.items()}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            found[name].append(_rate(side, sizes[name])[0])
    return found


def _rate(side: Side, size: int) -> tuple[float, float]:
    began = perf_counter()
    units = side(size)
    spent = perf_counter() - began
    return units / spent, spent


def _size(side: Side) -> int:
    """How many pieces take long enough."""
    size = 1
    while (spent := _rate(side, size)[1]) < SECONDS:
        size = max(2 * size, int(size * SECONDS / max(spent, 1e-6)))
    return size


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """How many times faster we are, one a repeat."""
    return tuple(our / their for our, their in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------------------------- against the original packages
def _spread(repeats: int) -> list[Measurement]:
    def original() -> Side:
        require("mpe2", "mpe")
        from mpe2 import simple_spread_v3

        env = simple_spread_v3.parallel_env(N=3, max_cycles=25)
        env.reset(seed=0)
        actions = torch.randint(5, (1000, 3), generator=torch.Generator().manual_seed(0)).tolist()

        def steps(count: int) -> int:
            for step in range(count):
                env.step(dict(zip(env.possible_agents, actions[step % 1000], strict=True)))
                if not env.agents:
                    env.reset()
            return count

        return steps

    return _against("spread vs mpe2", "mpe-spread", original, repeats, {32: 15, 1024: 150})


def _foraging(repeats: int) -> list[Measurement]:
    def original() -> Side:
        require("lbforaging", "lbf")
        import gymnasium

        env = gymnasium.make("Foraging-8x8-2p-2f-coop-v3", disable_env_checker=True).unwrapped
        env.reset(seed=0)
        actions = torch.randint(6, (1000, 2), generator=torch.Generator().manual_seed(0)).tolist()

        def steps(count: int) -> int:
            for step in range(count):
                _, _, done, truncated, _ = env.step(actions[step % 1000])
                if done or truncated:
                    env.reset()
            return count

        return steps

    return _against("foraging vs lbforaging", "lbf-8x8-2p-2f-coop", original, repeats, {32: 5, 1024: 30})


def _against(
    name: str, env: str, original: Callable[[], Side], repeats: int, targets: Mapping[int, float]
) -> list[Measurement]:
    """Ratios of env-steps a second, ours at several numbers of copies to the original's one after the other."""
    labels = {copies: f"{name}, {copies} copies" for copies in targets}
    try:
        sides = {name: original()} | {labels[copies]: _stepped(env, copies) for copies in targets}
    except MissingExtra as error:
        return [Measurement(labels[copies], (), target, note=str(error)) for copies, target in targets.items()]
    found = rates(sides, repeats)
    return [
        Measurement(labels[copies], ratios(found[labels[copies]], found[name]), target)
        for copies, target in targets.items()
    ]


def _stepped(name: str, copies: int) -> Side:
    env = make_env(name, copies)
    env.reset(0)
    choices = env.team.legal_actions.shape[-1]
    shape = (100, copies, env.team.size)
    actions = torch.randint(choices, shape, generator=torch.Generator().manual_seed(0))

    def steps(count: int) -> int:
        for step in range(count):
            env.step(actions[step % 100])
        return count * copies

    return steps


# ------------------------------------------------------------------------------------------- acting, training, windows
def _mappo(network: Network, envs: int, steps: int = 25) -> tuple[PPOLearner, VectorEnv]:
    env = make_env("mpe-spread", envs)
    learner = PPO(critic="central", network=network, rollout=steps, epochs=4).learner(
        env.team, torch.Generator().manual_seed(0)
    )
    return learner, env


def _acting(repeats: int) -> list[Measurement]:
    learner, env = _mappo(Network(hidden=(64, 64)), envs=1024)
    actor = learner.policy.part_for("action")
    workspace = Workspace(Schema.from_team(env.team).extended(**actor.fields()), time=25, envs=env.num_envs)
    first = env.reset(0)
    workspace.write(25, {**first.seen, "start": first.start})
    chain, generator = Chain(env, actor), torch.Generator().manual_seed(1)

    def windows(count: int) -> int:
        for _ in range(count):
            workspace.carry()
            act(chain, workspace, 0, 25, generator=generator)
        return count * 25 * env.num_envs

    values = rates({"act": windows}, repeats)["act"]
    return [Measurement("acting, 64-64 MLP, 1024 copies of spread", tuple(values), 300_000, is_ratio=False)]


def _training(repeats: int) -> list[Measurement]:
    learner, env = _mappo(Network(hidden=(64, 64)), envs=1024)
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(0)

    def updates(count: int) -> int:
        for _ in range(count):
            learner.update(collector.collect())
        return count * 25 * env.num_envs

    values = rates({"train": updates}, repeats)["train"]
    name = "MAPPO, 64-64, 4 epochs, 1024 copies of spread x 25 steps"
    return [Measurement(name, tuple(values), 60_000, is_ratio=False)]


def _windows(repeats: int) -> list[Measurement]:
    """Forward and backward passes over a window: all steps at once, against the loop over `step`."""
    found: list[Measurement] = []
    for kind, network, target in (("MLP", Network(), 3.0), ("GRU", Network(memory="gru"), 1.0)):
        for steps in LENGTHS:
            learner, env = _mappo(network, envs=64, steps=steps)
            collector = Collector(env, learner, torch.Generator().manual_seed(1))
            collector.start(0)
            window = collector.collect()
            sides = {name: _passes(learner, window, name == "loop") for name in ("sequence", "loop")}
            speed = rates(sides, repeats)
            values = ratios(speed["sequence"], speed["loop"])
            found.append(Measurement(f"{kind}, window of {steps} steps vs step by step", values, target))
    return found


def _passes(learner: PPOLearner, window: Workspace, is_stepwise: bool) -> Side:
    def passes(count: int) -> int:
        for _ in range(count):
            outputs = replay(learner.policy, window, given=("action",), stepwise=is_stepwise)
            (outputs["log_prob"].mean() + outputs["value"].mean()).backward()
        return count

    return passes


MEASURES: Mapping[str, Callable[[int], list[Measurement]]] = {
    "spread": _spread,
    "foraging": _foraging,
    "acting": _acting,
    "training": _training,
    "windows": _windows,
}
