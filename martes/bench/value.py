"""Value decomposition and COMA beside EPyMARL: milliseconds of an update, and env-steps a second of a whole run.

The other side of these ratios is not run here: it is what EPyMARL (commit cbc38c0, shipped defaults, one thread of
torch 2.13, two shared cores) was measured at once on `lbforaging:Foraging-8x8-2p-3f-v3`, 50 steps an episode. Its
networks, batches and gradient steps for each env-step are taken over, and one thread of torch:

- IQL, VDN, QMIX: 32 episodes a batch; one update for each episode with one copy, for eight episodes with more. VDN and
  QMIX: two layers of 64, without memory; IQL: one of 128 and a GRU of 128.
- COMA: a layer of 64 and a GRU of 64, a critic of two layers of 64; one update for each rollout of eight episodes, or
  as near to that as whole rollouts come.

An update includes the draw of its batch. A run acts, stores and learns; beside it stands what the environment gives
alone, under actions drawn beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch

from martes.algorithms.coma import COMA
from martes.algorithms.q_learning import QLearning
from martes.bench.games import lbforaging, stepped
from martes.bench.learning import Run
from martes.bench.timing import Measurement, rates
from martes.envs.catalogue import environment
from martes.envs.settings import Environment
from martes.errors import MissingExtra
from martes.networks import Network
from martes.training.process import threads

BATCHED, PACKAGE = "lbf-8x8-2p-3f", "Foraging-8x8-2p-3f-v3"
EPISODE = 50
_FEEDFORWARD = Network(hidden=(64, 64), agent_id=True)
_RECURRENT = Network(hidden=(128,), memory="gru", memory_size=128, agent_id=True)
_COMA = Network(hidden=(64,), memory="gru", memory_size=64, agent_id=True)


@dataclass(frozen=True)
class Published:
    """What EPyMARL was measured at."""

    update: float
    """Milliseconds."""
    alone: float | None
    """Env-steps a second with one environment; COMA has none of this."""
    together: float
    """The same with eight in processes of their own."""


PUBLISHED: Mapping[str, Published] = {
    "QMIX": Published(21, 830, 2865),
    "VDN": Published(14, 981, 2352),
    "IQL": Published(54, 552, 1929),
    "COMA": Published(24, None, 2327),
}


def value(repeats: int) -> list[Measurement]:
    """Times faster than EPyMARL was measured: one update; and env-steps a second with 1, 8 and 64 environments."""
    with threads(1):
        updates = [_update(name, repeats) for name in PUBLISHED]
        runs = [
            _run(name, copies, repeats)
            for copies in (1, 8, 64)
            for name, published in PUBLISHED.items()
            if copies > 1 or published.alone
        ]
    return updates + runs


def _config(name: str, copies: int) -> QLearning | COMA:
    """The settings of the published measurement; `copies` decide how often is learned."""
    if name == "COMA":
        critic = Network(hidden=(64, 64))
        steps = EPISODE if copies <= 10 else 8 * EPISODE // copies
        return COMA(network=_COMA, critic_network=critic, rollout=steps, lr=3e-4, critic_lr=3e-4, reward="sum")
    pace = 1 / EPISODE if copies == 1 else 1 / (8 * EPISODE)
    shared = QLearning(reward="sum", ratio=pace, rollout=EPISODE)
    if name == "IQL":
        return replace(shared, mixer="none", network=_RECURRENT, lr=3e-4)
    return replace(shared, mixer="monotone" if name == "QMIX" else "sum", network=_FEEDFORWARD)


def _begun(name: str, task: str, copies: int) -> Run:
    env = environment(Environment(task, copies))
    return Run(_config(name, copies).learner(env.team, torch.Generator().manual_seed(0)), env)


def _update(name: str, repeats: int) -> Measurement:
    published = PUBLISHED[name].update
    run = _begun(name, BATCHED, 10 if name == "COMA" else 8)
    found = rates({"": run.update}, repeats)[""]
    label = f"{name}, an update: {1000 / median(found):.1f} ms, published: {published:g} ms"
    return Measurement(label, tuple(each * published / 1000 for each in found), 5)


def _run(name: str, copies: int, repeats: int) -> Measurement:
    published = PUBLISHED[name].together if copies > 1 else PUBLISHED[name].alone
    assert published is not None
    task = BATCHED if copies > 1 else f"lbforaging:{PACKAGE}"
    target, what = 5 if copies > 8 else 3, f"{copies} copies" if copies > 1 else "1 of lbforaging"
    label = f"{name}, a run with {what}, published: {published:,g}/s with {min(copies, 8)}"
    try:
        alone = lbforaging(PACKAGE) if copies == 1 else stepped(task, copies)
        found = rates({"run": _begun(name, task, copies).go_on, "alone": alone}, repeats)
    except MissingExtra as error:
        return Measurement(label, (), target, note=str(error))
    label += f", here {median(found['run']):,.0f}/s; environment alone {median(found['alone']):,.0f}/s"
    return Measurement(label, tuple(each / published for each in found["run"]), target)
