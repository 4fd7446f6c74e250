"""martes beside AgileRL in one run: environments alone, training, updates, selection and mutation.

AgileRL lives in an environment of its own (`bench.agilerl_peer` is run by the interpreter there). Settings are those of
its multi-agent example: speaker-listener with continuous actions, eight environments, batches of 32, an update for
every 96 env-steps from replay; rollouts of 2,048 env-steps, in 4 passes of minibatches of 128.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryFile
from types import TracebackType

import torch
from torch import nn

from martes.algorithms.learner import Algorithm, Learner
from martes.algorithms.maddpg import MADDPG, MADDPGLearner
from martes.algorithms.off_policy import Store
from martes.algorithms.ppo import PPO
from martes.bench import agilerl_peer
from martes.bench.agilerl_page import Beside
from martes.bench.learning import Run
from martes.bench.timing import Side, rates
from martes.data import TeamSpec, VectorEnv
from martes.envs.catalogue import environment
from martes.envs.pace import drawn_actions
from martes.envs.settings import Environment
from martes.errors import ConfigError, require
from martes.evolution.architecture import Shapes
from martes.evolution.fitness import fitness_named
from martes.evolution.generation import Site, Work, outcome
from martes.evolution.member import State, revived
from martes.evolution.population import breeding_of, first_generation, next_generation
from martes.evolution.settings import Chances, Evolution
from martes.evolution.shared_replay import pooled, without_rows
from martes.networks import ActorCritic, Network
from martes.networks.deterministic import ActionNoise
from martes.training.process import reuse_memory, threads
from martes.training.settings import Evaluation

VERSION = "2.58.0"
"""Of AgileRL, as measured so far."""
COPIES = agilerl_peer.ENVS
PLAIN = Environment("mpe2-speaker-listener", COPIES, options={"continuous_actions": True, "state": False})
BATCHED = Environment("mpe-speaker-listener-continuous", COPIES)
THERE, TENSORS = f"{COPIES} processes", "batched on tensors"
HOSTED = {"in this process": PLAIN, "in 2 processes": replace(PLAIN, workers=2), TENSORS: BATCHED}
STEPS, ROLLOUT = 12, 256
"""Steps of each environment between two updates: from replay (theirs: 100 env-steps, rounded down), of IPPO."""

_NETWORK = Network(hidden=(32, 32, 64, 32), layer_norm=True)  # theirs: encoder, latent layer, head
_REPLAYED = MADDPG(
    network=_NETWORK,
    critic_network=Network(hidden=(32, 32), layer_norm=True),
    critic_sees="observations",
    noise=ActionNoise(kind="ou"),
    batch=32,
    rollout=STEPS,
    ratio=1 / (STEPS * COPIES),
    warmup=1000,
    store=Store(capacity=100_000),
)
_MATD3 = replace(_REPLAYED, twin_critics=True, policy_delay=2, target_noise=0.2)
_IPPO = PPO(
    critic="local", sharing="group", network=_NETWORK, rollout=ROLLOUT, minibatches=ROLLOUT * COPIES // 128, lr=1e-4
)
COMPILED = ", compiled"
ALGORITHMS: dict[str, Algorithm] = {
    "MADDPG": _REPLAYED,
    f"MADDPG{COMPILED}": replace(_REPLAYED, compile=True),
    "MATD3": _MATD3,
    f"MATD3{COMPILED}": replace(_MATD3, compile=True),
    "IPPO": _IPPO,
    f"IPPO{COMPILED}": replace(_IPPO, compile=True),
}
_EVOLUTION = Evolution(
    mutation=Chances(none=0.2, hyperparameter=0.2, parameters=0.2, architecture=0.2),
    shapes=Shapes(layers=(1, 4)),
    space={
        "algorithm.lr": (1e-4, 1e-2),
        "algorithm.critic_lr": (1e-4, 1e-2),
        "algorithm.batch": (8, 512),
        "algorithm.ratio": (0.005, 0.05),
    },
)
_LIVING = replace(_EVOLUTION, mutation=Chances(none=0.2, hyperparameter=0.2, parameters=0.0, architecture=0.2))
"""Without what AgileRL 2.58.0 cannot do to a member whose layers have changed."""


class Peer:
    """AgileRL at work in a process of another interpreter; leaving the context ends it.

    Raises ConfigError, with the last line of what went wrong there, where it does not run.
    """

    def __init__(self, python: Path) -> None:
        self.python = python
        command, own = [str(python), "-I", agilerl_peer.__file__], os.environ | {"OMP_NUM_THREADS": "1"}
        with ExitStack() as opened:
            self._errors = opened.enter_context(TemporaryFile("w+", encoding="utf-8", errors="replace"))
            try:
                process = Popen(command, stdin=PIPE, stdout=PIPE, stderr=self._errors, text=True, env=own)
            except OSError as error:
                raise ConfigError(f"--python {python} cannot be run: {error.strerror}") from error
            self._process = opened.enter_context(process)
            self._open = opened.pop_all()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and left an order unread
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except TimeoutExpired:
            self._process.kill()
        self._open.close()

    def hello(self) -> dict[str, object]:
        """What it says of itself once it is ready: version and parameters."""
        said = self._answer()
        assert isinstance(said, dict)
        return said

    def side(self, what: str) -> Side:
        """A piece of its work."""

        def work(count: int) -> int:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended: its answer, which is none, says why
                print(json.dumps([what, count]), file=self._process.stdin, flush=True)
            units = self._answer()
            assert isinstance(units, int)
            return units

        return work

    def _answer(self) -> object:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(
            f"AgileRL does not run under --python {self.python} ({last}). Make that environment ready with "
            f"`pip install agilerl=={VERSION} peft mpe2`"
        )


def measured(python: Path | None, repeats: int) -> tuple[tuple[Beside, ...], str]:
    """All lines, and which AgileRL they are beside.

    Raises ConfigError where no interpreter is given, or AgileRL does not run there, or there is less than one repeat;
    MissingExtra without the environment.
    """
    if python is None:
        raise ConfigError(
            "bench agilerl measures beside AgileRL in an environment of its own: "
            f"say --python <its interpreter>, after `pip install agilerl=={VERSION} peft mpe2` there"
        )
    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}: it must be at least 1")
    require("mpe2", "mpe")
    with Peer(python) as peer, ExitStack() as opened, threads(1):
        hello = peer.hello()
        reuse_memory()  # as every run does
        envs = {name: environment(each) for name, each in HOSTED.items()}
        for env in envs.values():
            opened.callback(env.close)
        found = rates({THERE: peer.side("environment")} | {name: alone(env) for name, env in envs.items()}, repeats)
        theirs = tuple(found[THERE])
        lines = [Beside(f"environment alone, {THERE} there, here {name}", theirs, tuple(found[name])) for name in envs]
        floors = {name: median(values) for name, values in found.items()}
        plain = max((name for name in envs if name != TENSORS), key=lambda name: floors[name])
        counts = hello["parameters"]
        assert isinstance(counts, dict)
        for name in ALGORITHMS:
            pair = {each: envs[each] for each in (plain, TENSORS)}
            lines += beside(name, peer, pair, floors, repeats, counts[name.removesuffix(COMPILED)])
        for name in (plain, TENSORS):
            site = opened.enter_context(closing(Site()))
            found = rates(
                {THERE: peer.side("population"), "": population(HOSTED[name], envs[name].team, site)}, repeats
            )
            label = f"a population of 4 of MADDPG, here {name}"
            lines.append(Beside(label, tuple(found[THERE]), tuple(found[""]), None if name == TENSORS else 3.0))
        lines += _bred(peer, envs[plain].team, repeats)
    return tuple(lines), f"AgileRL {hello['agilerl']}, torch {hello['torch']}"


def beside(
    name: str,
    peer: Peer,
    envs: Mapping[str, VectorEnv],
    floors: Mapping[str, float],
    repeats: int,
    counts: Sequence[int],
) -> list[Beside]:
    """Training of one algorithm in each of our environments, and its updates; `counts` are their parameters."""
    runs = {
        each: Run(ALGORITHMS[name].learner(env.team, torch.Generator().manual_seed(0)), env)
        for each, env in envs.items()
    }
    known = name.removesuffix(COMPILED)
    found = rates({THERE: peer.side(f"train {known}")} | {each: run.go_on for each, run in runs.items()}, repeats)
    theirs = tuple(found[THERE])
    lines = list[Beside]()
    for each in envs:
        shares = f"of the environment alone: {_share(found, floors, THERE)} there, {_share(found, floors, each)} here"
        goal = None if each == TENSORS else 3.0
        lines.append(Beside(f"{name}, training, here {each}", theirs, tuple(found[each]), goal, note=shares))
    learner = runs[TENSORS].learner
    found = rates({THERE: peer.side(f"update {known}"), "": runs[TENSORS].update}, repeats)
    updates = (tuple(found[THERE]), tuple(found[""]))
    told = " + ".join(f"{count:,}" for count in counts), " + ".join(f"{count:,}" for count in parameters(learner))
    note = f"parameters of policies + critics: {told[0]} there, {told[1]} here"
    size = f"{ROLLOUT * COPIES:,} env-steps" if known == "IPPO" else "a batch of 32"
    return [*lines, Beside(f"{name}, an update, {size}", *updates, 8.0, is_time=True, note=note)]


def _share(found: Mapping[str, Sequence[float]], floors: Mapping[str, float], name: str) -> str:
    return f"{median(found[name]) / floors[name]:.0%}"


def parameters(learner: Learner) -> tuple[int, int]:
    """Of all policies and of all critics, the padding of unequal agents included; targets are not counted."""
    if isinstance(learner, MADDPGLearner):
        pair: tuple[nn.Module, nn.Module] = (learner.policy, learner.critics)
    else:
        assert isinstance(learner.policy, ActorCritic)
        pair = (learner.policy.actor, learner.policy.critic)
    policies, critics = (sum(each.numel() for each in module.parameters()) for module in pair)
    return policies, critics


def alone(env: VectorEnv) -> Side:
    """Steps of an environment under one joint action."""
    action = drawn_actions(env.team, env.reset(0), torch.Generator().manual_seed(0))

    def steps(count: int) -> int:
        for _ in range(count):
            env.step(action)
        return count * env.num_envs

    return steps


def _bred(peer: Peer, team: TeamSpec, repeats: int) -> list[Beside]:
    """Selection and mutation; AgileRL's members are learners throughout, ours data that learners are made from."""
    ends = {"": generations(_REPLAYED, team), ", made ready to learn": generations(_REPLAYED, team, is_revived=True)}
    found = rates({THERE: peer.side("generation")} | ends, repeats)
    return [
        Beside(
            f"selection and mutation of 4 members of MADDPG{end}",
            tuple(found[THERE]),
            tuple(found[end]),
            most=50.0,
            is_time=True,
        )
        for end in ends
    ]


def population(task: Environment, team: TeamSpec, site: Site) -> Side:
    """Generations of four members of MADDPG that share their replay, as `martes evolve` lets them live: env-steps.

    A generation ends with a test episode in each environment, which are not counted; and with selection and mutation.
    """
    breeding = breeding_of(_LIVING, _REPLAYED, team)
    members = first_generation(_REPLAYED, team, 4, seed=0)
    keeper = _REPLAYED.learner(team, torch.Generator())
    pool: State = {}
    generation = 0
    evaluation, fitness = Evaluation(episodes=COPIES), fitness_named("team", team)

    def lived(count: int) -> int:
        nonlocal members, pool, generation
        for _ in range(count):
            if generation:
                members = next_generation(members, breeding, 0, generation)
            generation += 1
            until = generation * agilerl_peer.PIECE
            work = Work(task, evaluation, fitness, 0, generation, until, total=until, pool=pool)
            ends = [outcome(member, work, site) for member in members]
            members, pool = [each.member for each in ends], pooled(pool, [each.seen for each in ends], keeper)
        return count * agilerl_peer.PIECE * len(members)

    return lived


def generations(algorithm: Algorithm, team: TeamSpec, is_revived: bool = False) -> Side:
    """Selections from, and mutations of, four members whose replay is shared; learners are made of them if told so."""
    breeding = breeding_of(_EVOLUTION, algorithm, team)
    members = [without_rows(member) for member in first_generation(algorithm, team, 4, seed=0)]
    generation = 0

    def bred(count: int) -> int:
        nonlocal members, generation
        for _ in range(count):
            generation += 1
            scored = [replace(member, fitness=(float(place),)) for place, member in enumerate(members)]
            members = next_generation(scored, breeding, 0, generation)
            for member in members if is_revived else ():
                revived(member, torch.Generator())
        return count

    return bred
