"""What stands between two generations: selection and mutation of four members, alone."""

from martes.bench.agilerl import ALGORITHMS, BATCHED, generations
from martes.bench.timing import Measurement, rates
from martes.envs.catalogue import environment

MOST = 0.05
"""Seconds that it may take."""


def breeding(repeats: int) -> list[Measurement]:
    """Generations a second of MADDPG and MATD3: members as the data that they are, and made ready to learn again."""
    team = environment(BATCHED).team
    sides = {
        f"selection and mutation of 4 members of {name}{end}": generations(ALGORITHMS[name], team, is_revived=bool(end))
        for name in ("MADDPG", "MATD3")
        for end in ("", ", made ready to learn")
    }
    found = rates(sides, repeats)
    return [Measurement(name, tuple(found[name]), 1 / MOST, is_ratio=False) for name in sides]
