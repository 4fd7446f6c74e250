from pathlib import Path

import pytest

from martes.presets import PRESETS
from martes.training.log import Log
from martes.training.loop import train
from martes.training.run import RunFolder

STEPS = 1600


def trained(folder: Path, preset: str, seed: int) -> Path:
    """A tiny real run."""
    plan = PRESETS[preset].changed({
        "env.copies": 8, "algorithm.rollout": 25, "algorithm.epochs": 1, "algorithm.minibatches": 1,
        "algorithm.lr": 0.0005, "evaluation.greedy": True,
        "training.steps": STEPS, "training.seed": seed, "training.threads": 1,
        "evaluation.every": 400, "evaluation.episodes": 4, "logging.every": 200, "logging.tensorboard": False,
        "logging.progress": "none",
    })  # fmt: skip
    run = RunFolder(folder)
    run.path.mkdir(parents=True)
    run.config.write_text(plan.to_yaml())
    with Log(run.path, plan.logging, STEPS, preset, plan.evaluation.greedy) as log:
        train(plan, run, log)
    return folder


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    """A folder with three runs: two seeds of one experiment, one of another."""
    folder = tmp_path_factory.mktemp("runs")
    for preset, seed in (("ippo/climbing", 0), ("ippo/climbing", 1), ("mappo/climbing", 0)):
        trained(folder / preset.replace("/", "-") / str(seed), preset, seed)
    return folder
