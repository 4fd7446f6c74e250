"""The laws that every vector environment keeps, whatever stands behind it."""

import multiprocessing
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from martes.data import Schema, TimeStep, VectorEnv
from martes.envs.pace import drawn_actions
from martes.envs.single import HostedEnv
from martes.errors import EnvError


@dataclass(frozen=True)
class Promise:
    """How to make the environment, and what is known of it."""

    make: Callable[[int, int | None], VectorEnv]
    """`make(copies, limit)`: so many copies, cut after `limit` steps (None: as the task has it)."""
    tells_state: bool | None = None
    """Does `state_dict` work? None: where the environment is no copies of a task in plain Python."""
    is_seeded: bool = True
    """Does one seed give one future? (Not where a package draws from a stream that nobody can seed.)"""
    draws: bool | None = None
    """Has it a picture of itself? None: perhaps; an error says if not."""
    steps: int = 200


def played(env: VectorEnv, seed: int, steps: int) -> list[TimeStep]:
    """The steps that follow from a seed under drawn actions."""
    generator = torch.Generator().manual_seed(seed)
    made = [env.reset(seed)]
    for _ in range(steps):
        made.append(env.step(drawn_actions(env.team, made[-1], generator)))
    return made


def tensors(step: TimeStep) -> dict[str, Tensor]:
    """All that a step says, rows of `final` that mean nothing zeroed."""
    told = {f"seen {name}": value for name, value in step.seen.items()}
    told |= {name: getattr(step, name) for name in ("start", "reward", "discount", "cut")}
    for name, value in (step.final or {}).items():
        told[f"final {name}"] = value[step.cut]
    return told


def assert_same(one: TimeStep, other: TimeStep, where: str) -> None:
    """Both say the same."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys(), where
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), f"{name} differs {where}"


def check_shapes(env: VectorEnv, steps: list[TimeStep]) -> None:
    """Every tensor is what the team declares; padding and the absent are zeros; the living can act."""
    schema = Schema.from_team(env.team)
    for t, step in enumerate(steps):
        for seen in (step.seen, step.final or {}):
            for name, value in seen.items():
                assert value.shape == schema.shape(name, 1, env.num_envs)[1:], (t, name, value.shape)
                assert value.dtype == schema[name].dtype, (t, name, value.dtype)
                assert value.float().isfinite().all(), (t, name)
        expected = {name for name, field in schema.items() if field.extra_row and name != "start"}
        assert set(step.seen) == expected
        assert set(step.final or expected) == expected
        assert step.final is not None or not step.cut.any()
        for name, dtype in (("reward", torch.float32), ("discount", torch.float32)):
            value = getattr(step, name)
            assert value.shape == (env.num_envs, env.team.size)
            assert value.dtype == dtype
            assert value.isfinite().all()
        there = step.seen["agent_mask"]
        if "action_mask" in step.seen:
            legal = step.seen["action_mask"].flatten(2).any(-1)
            assert legal[there].all(), f"somebody cannot act at step {t}"
        if "obs" in step.seen and step.seen["obs"].ndim == 3:
            real = torch.arange(step.seen["obs"].shape[-1]) < torch.tensor(env.team.observation_sizes)[:, None]
            assert not (step.seen["obs"] * (~real | ~there[..., None])).any(), f"padding is not zero at step {t}"


def check_laws(steps: list[TimeStep]) -> None:
    """discount, cut and start say what they must."""
    assert steps[0].start.all()
    assert not steps[0].cut.any()
    for t, step in enumerate(steps[1:], 1):
        assert torch.equal(step.start, step.cut), f"an episode opens exactly where one was cut (step {t})"
        assert ((step.discount == 0) | (step.discount == 1)).all()
        alone = (step.discount == 0) & ~step.cut[:, None]
        assert not (alone & step.seen["agent_mask"]).any(), f"who terminated alone is still there at step {t}"
        assert step.seen["agent_mask"][step.start].any(-1).all(), f"an episode opens with nobody at step {t}"


def check(promise: Promise) -> None:
    """All the laws."""
    children = len(multiprocessing.active_children())
    with closing(promise.make(3, None)) as env:
        steps = played(env, 7, promise.steps)
        check_shapes(env, steps)
        check_laws(steps)
        with pytest.raises(EnvError, match="shape"):
            env.step(torch.zeros(5, 1, 7))
        if promise.is_seeded:
            for t, (one, other) in enumerate(zip(steps, played(env, 7, 20), strict=False)):
                assert_same(one, other, f"after a second reset from one seed, at step {t}")
            with closing(promise.make(3, None)) as twin:
                for t, (one, other) in enumerate(zip(steps, played(twin, 7, 20), strict=False)):
                    assert_same(one, other, f"between two environments of one seed, at step {t}")
        check_picture(env, promise.draws)
        check_state(env, promise)
    check_limit(promise)
    assert len(multiprocessing.active_children()) == children, "a child process is left"


def check_picture(env: VectorEnv, draws: bool | None) -> None:
    """A picture, or an error that says that there is none."""
    try:
        picture = env.render(1)
    except EnvError:
        assert not draws
        return
    assert draws is not False
    assert picture.dtype.name == "uint8"
    assert picture.ndim == 3
    assert picture.shape[2] == 3


def check_state(env: VectorEnv, promise: Promise) -> None:
    """A restored environment goes on as the saved one did; or it says that it cannot tell its state."""
    tells_state = not isinstance(env, HostedEnv) if promise.tells_state is None else promise.tells_state
    if not tells_state:
        with pytest.raises(NotImplementedError):
            env.state_dict()
        return
    last = played(env, 3, 4)[-1]
    saved = env.state_dict()
    generator = torch.Generator().manual_seed(1)
    actions, gone = [], [last]
    for _ in range(30):
        actions.append(drawn_actions(env.team, gone[-1], generator))
        gone.append(env.step(actions[-1]))
    with closing(promise.make(3, None)) as twin:
        shown = twin.load_state_dict(saved)
        for name, value in last.seen.items():
            assert torch.equal(shown.seen[name], value), f"{name} is not what was seen when the state was saved"
        for t, action in enumerate(actions):
            assert_same(gone[t + 1], twin.step(action), f"{t + 1} steps after a state was restored")


def check_limit(promise: Promise, limit: int = 3) -> None:
    """A forced limit cuts, is not terminal, and shows the real last observation: what would have been seen."""
    with closing(promise.make(2, limit)) as short, closing(promise.make(2, None)) as long:
        assert short.team.episode_limit == min(limit, long.team.episode_limit or limit)
        generator = torch.Generator().manual_seed(5)
        cut, whole = short.reset(11), long.reset(11)
        open_ = torch.ones(2, dtype=torch.bool)
        for t in range(1, limit + 1):
            action = drawn_actions(short.team, cut, generator)
            cut, whole = short.step(action), long.step(action)
            by_limit = open_ & ~whole.cut & (t == limit)
            assert torch.equal(cut.cut[open_], (whole.cut | (t == limit))[open_])
            if not promise.is_seeded:
                continue
            assert torch.equal(cut.reward[open_], whole.reward[open_])
            assert torch.equal(cut.discount[open_], whole.discount[open_]), "a time limit is not terminal"
            for name, value in whole.seen.items():
                if by_limit.any():
                    assert cut.final is not None
                    assert torch.equal(cut.final[name][by_limit], value[by_limit]), f"{name} is not the real last one"
            open_ = open_ & ~cut.cut
        assert t == limit
