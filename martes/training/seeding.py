"""One seed a run: every stream of random numbers is named, and distinct from all others."""

import zlib

import numpy as np
import torch

from martes.errors import ConfigError


def seed_of(run_seed: int, name: str, *index: int) -> int:
    """The seed of the stream `name` (and `index`, such as an evaluation's step) of a run, below 2^63.

    Streams are independent by construction (numpy's SeedSequence, O'Neill 2015), whoever draws from them first.
    Raises ConfigError for a seed below 0.
    """
    if run_seed < 0:
        raise ConfigError(f"the seed is {run_seed}: it must be at least 0")
    entropy = (run_seed, zlib.crc32(name.encode()), *index)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def generator_of(run_seed: int, name: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator at the start of that stream."""
    return torch.Generator(device).manual_seed(seed_of(run_seed, name, *index))
