"""One replay for a whole population, by generations: what all have seen before this one, and one's own since.

The pool is frozen while a generation lives, and takes in what its members saw, in their order, when all have ended: so
a member never depends on how far another has come, and comes out the same wherever it lives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from martes.algorithms.learner import Algorithm, Learner
from martes.data import Fields, TeamSpec, Workspace
from martes.data.experience import Replayed
from martes.errors import ConfigError
from martes.evolution.member import Member, State

_ROWS = ("columns", "replay/", "priorities/")
"""Where a `Replayed.state_dict` keeps what was seen; the rest are counters and random state."""


class Seen(NamedTuple):
    """A window that a member collected, as it was, and the real last observations of what was cut in it."""

    window: Workspace
    final: Fields | None


def refuse_unshared(algorithm: Algorithm, team: TeamSpec, is_shared: bool) -> None:
    """Raises ConfigError where there is no replay to share, or one in files, which members would write together."""
    experience = algorithm.learner(team, torch.Generator()).experience
    if isinstance(experience, Replayed) and experience.folder is not None:
        raise ConfigError("algorithm.store.folder: members would write to the same files; leave it out")
    if is_shared and not isinstance(experience, Replayed):
        raise ConfigError("evolution.shared_replay: this algorithm does not learn from replay; leave it out")


def with_pool(member: Member, pool: Mapping[str, object]) -> Member:
    """The member before a generation: with the pool for its replay, and about to open new episodes.

    What stood open in the pool belongs to others.
    """
    experience = None if member.experience is None else {**member.experience, **pool}
    collector = None if member.collector is None else {**member.collector, "env": None}
    return replace(member, experience=experience, collector=collector)


def without_rows(member: Member) -> Member:
    """The member after a generation, without what lies in the pool."""
    assert member.experience is not None
    kept = {name: part for name, part in member.experience.items() if not name.startswith(_ROWS)}
    return replace(member, experience=kept)


def seen(window: Workspace, final: Fields | None, learner: Learner) -> Seen:
    """A copy of what a replay keeps of a window, which is only lent."""
    assert isinstance(learner.experience, Replayed)
    lent = window.subset(tuple(learner.experience.schema))
    tensors = {name: lent[name].to("cpu", copy=True) for name in lent.names}
    filled = torch.ones(window.time, window.envs, dtype=torch.bool)
    ends = None if final is None else {name: each.cpu() for name, each in final.items()}
    return Seen(Workspace.of(lent.schema, tensors, filled), ends)


def pooled(pool: Mapping[str, object], new: Sequence[Sequence[Seen]], learner: Learner) -> State:
    """The pool with what the members have seen, in their order."""
    experience = learner.experience
    assert isinstance(experience, Replayed)
    if pool:
        experience.load_state_dict({**experience.state_dict(), **pool})
    for windows in new:
        for window, final in windows:
            experience.add(window, final)
    return {name: part for name, part in experience.state_dict().items() if name.startswith(_ROWS)}
