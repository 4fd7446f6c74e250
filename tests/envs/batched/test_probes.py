"""Each probe's answers, against what is seen when it is played."""

from typing import Any

import pytest
import torch
from torch import Tensor

from martes.data import Continuous, Fields, MultiDiscrete
from martes.envs.batched import BatchedEnv
from martes.envs.batched.action_probes import Aim, Combination, Picture, UnequalTeam
from martes.envs.batched.value_probes import Lives, ObservedReward, TimeLimit
from martes.errors import ConfigError

DEATH = Lives(((1.0, 2.0), (1.0, 0.5, 0.0, -1.0, 4.0), (3.0,)))
VALUE_PROBES = [Lives(), Lives(((0.0, 1.0),)), DEATH, ObservedReward(), ObservedReward(5), TimeLimit(), TimeLimit(1, 3)]


@pytest.mark.parametrize("game", VALUE_PROBES, ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_values_fulfil_bellmans_equation(game: Any, gamma: float):
    """V(t) = r + gamma · discount · V(what really followed), wherever an agent is there."""
    env = BatchedEnv(game, 6)
    step, checked = env.reset(0), 0
    for _ in range(12):
        seen, there = step.seen["obs"], step.seen["agent_mask"]
        step = env.step(torch.randint(2, (6, env.team.size)))
        followed = (step.final or step.seen)["obs"]
        value, after = game.value(seen, gamma), game.value(followed, gamma)
        assert value.shape == (6, env.team.size)
        assert torch.allclose(value[there], (step.reward + gamma * step.discount * after)[there], atol=1e-5)
        assert not value[~there].any()
        assert not step.reward[~there].any()
        checked += int(there.sum())
    assert checked > 0


@pytest.mark.parametrize("game", VALUE_PROBES, ids=str)
def test_returns_are_known(game: Any):
    env = BatchedEnv(game, 4000)
    step = env.reset(0)
    total, limit = torch.zeros(4000, env.team.size), 0
    while not step.cut.any():
        step = env.step(torch.randint(2, (4000, env.team.size)))
        total, limit = total + step.reward, limit + 1
    assert step.cut.all()
    assert float(total.mean()) == pytest.approx(game.best_return, abs=0.05)
    assert limit == getattr(game, "longest", env.team.episode_limit or 1)


def test_known_values():
    first = BatchedEnv(DEATH, 1).reset(0).seen["obs"]
    assert DEATH.value(first, 0.5).tolist() == [[1 + 0.5 * 2, 1 + 0.25 - 0.125 + 0.25, 3.0]]
    delayed = Lives(((0.0, 1.0),))
    assert delayed.value(torch.eye(2)[:, None], 0.9).flatten().tolist() == pytest.approx([0.9, 1.0])
    assert TimeLimit().value(torch.ones(2, 2, 1), 0.9).flatten().tolist() == pytest.approx([10.0] * 4)
    assert ObservedReward().value(torch.tensor([[[1.0], [-1.0]]]), 0.9).tolist() == [[1.0, -1.0]]


def test_who_dies_alone_is_discounted_once_then_masked_while_others_play_on():
    env = BatchedEnv(DEATH, 2)
    step = env.reset(0)
    masks, discounts, cuts, blank = [step.seen["agent_mask"][0].tolist()], [], [], []
    for _ in range(5):
        step = env.step(torch.zeros(2, 3, dtype=torch.int64))
        seen = step.final or step.seen
        masks.append(seen["agent_mask"][0].tolist())
        blank.append((seen["obs"][0] == 0).all(1).tolist())
        discounts.append(step.discount[0].tolist())
        cuts.append(bool(step.cut[0]))
    assert masks == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert blank == [[not there for there in mask] for mask in masks[1:]]
    assert discounts == [[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert cuts == [False] * 4 + [True]
    assert step.seen["agent_mask"].all()  # everyone is back


def test_a_time_limit_cuts_without_an_end_and_without_a_trace():
    env = BatchedEnv(TimeLimit(episode_limit=3), 2)
    env.reset(0)
    for t in range(7):
        step = env.step(torch.zeros(2, 2, dtype=torch.int64))
        assert step.cut.eq(t % 3 == 2).all()
        assert step.discount.eq(1).all()
        assert step.seen["obs"].eq(1).all()  # nothing tells the time


# ------------------------------------------------------------------------------------------------------- action probes
def right_action(game: Any, seen: Fields) -> Tensor:
    """Read off the observation, in another way than the game does."""
    if isinstance(game, UnequalTeam):
        right = [
            [3 * s if i < game.scouts else s % 3 for i, s in enumerate(row)] for row in seen["obs"].argmax(-1).tolist()
        ]
        return torch.tensor(right)
    if isinstance(game, Aim):
        low, high = torch.tensor(game.low), torch.tensor(game.high)
        return low + (high - low) * (0.5 + 0.25 * seen["obs"])
    if isinstance(game, Combination):
        return torch.stack([part.argmax(-1) for part in seen["obs"].split(game.dials, -1)], -1)
    half = game.size // 2
    if game.compass:
        below = seen["obs/camera"][:, :, 0, half:].any(-1).any(-1)
        return 2 * below + (seen["obs/vector"][..., 0] > 0)
    picture = seen["obs"][:, :, 0]
    quarters = [
        picture[..., :half, :half],
        picture[..., :half, half:],
        picture[..., half:, :half],
        picture[..., half:, half:],
    ]
    return torch.stack([quarter.float().mean((-1, -2)) for quarter in quarters], -1).argmax(-1)


ACTION_PROBES = [
    UnequalTeam(),
    UnequalTeam(3, 1),
    Aim(),
    Aim(3, (-5.0,), (-4.0,)),
    Combination(),
    Combination(2, (4, 2, 3)),
    Picture(),
    Picture(2, 6),
    Picture(compass=True),
    Picture(3, 4, True),
]


@pytest.mark.parametrize("game", ACTION_PROBES, ids=str)
def test_the_right_action_earns_the_best_return_and_a_random_one_that_of_chance(game: Any):
    copies = 4000
    env = BatchedEnv(game, copies)
    step, earned = env.reset(0), []
    for _ in range(3):
        for name, part in env.team.parts.items():
            assert step.seen[name].shape[2:] == (part.shape if hasattr(part, "shape") else (part.size,))
        step = env.step(
            right_action(game, step.seen).to(torch.get_default_dtype() if isinstance(game, Aim) else torch.int64)
        )
        earned.append(float(step.reward.mean()))
        assert step.reward.shape == (copies, env.team.size)
        assert step.cut.all()
        assert not step.discount.any()
    assert earned == pytest.approx([game.best_return] * 3, abs=1e-6)
    assert float(env.step(random_action(env)).reward.mean()) == pytest.approx(game.chance_return, abs=0.03)


def random_action(env: BatchedEnv) -> Tensor:
    team, shape = env.team, (env.num_envs, env.team.size)
    if team.action_kind is Continuous:
        low, high = team.bounds
        return low + (high - low) * torch.rand(env.num_envs, *low.shape)
    sizes = torch.tensor(team.action_sizes)  # agent sub
    drawn = (torch.rand(*shape, sizes.shape[1]) * sizes).long()
    return drawn if team.action_kind is MultiDiscrete else drawn[..., 0]


def test_every_agent_and_copy_is_asked_something_else():
    for game in ACTION_PROBES:
        seen = BatchedEnv(game, 4000).reset(0).seen
        right = right_action(game, seen).double().reshape(4000, -1)
        assert (right != right[0]).any(0).all()
        if right.shape[1] > 1:
            correlation = torch.corrcoef(right.T) - torch.eye(right.shape[1])
            assert correlation.abs().max() < 0.07, game


def test_the_unequal_team_is_padded_with_zeros():
    env = BatchedEnv(UnequalTeam(1, 2), 500)
    assert env.team.observation_sizes == (2, 5, 5)
    assert env.team.action_sizes == ((4,), (3,), (3,))
    seen = env.reset(0).seen["obs"]
    assert not seen[:, 0, 2:].any()
    assert seen[:, 1:].any(0).all()


def test_pictures_are_bytes():
    for game in (Picture(), Picture(compass=True)):
        env = BatchedEnv(game, 8)
        camera = env.reset(0).seen["obs/camera" if game.compass else "obs"]
        assert camera.dtype == torch.uint8
        assert set(camera.unique().tolist()) == {0, 255}
        assert camera.float().mean() == 255 * (0.5 if game.compass else 0.25)


def test_neither_part_of_the_observation_is_enough():
    env = BatchedEnv(Picture(compass=True), 4000)
    seen = env.reset(0).seen
    right = right_action(Picture(compass=True), seen)
    for name in ("obs/camera", "obs/vector"):
        told = seen[name].flatten(1).float().mean(1) if name == "obs/vector" else seen[name][:, 0, 0, 0, 0].float()
        for value in told.unique():
            answers = right[told == value].flatten().bincount(minlength=4)
            assert (answers > 900).sum() == 2  # two answers are left, equally likely


@pytest.mark.parametrize("game", [*VALUE_PROBES, *ACTION_PROBES], ids=str)
def test_every_probe_is_drawn(game: Any):
    env = BatchedEnv(game, 2)
    env.reset(0)
    frame = env.render(1)
    assert frame.shape == (400, 400, 3)
    assert frame.std() > 3


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Lives(()), r"Lives\.rewards"),
        (lambda: Lives(((1.0,), ())), r"Lives\.rewards .* every agent one reward"),
        (lambda: ObservedReward(0), r"ObservedReward\.agents is 0"),
        (lambda: TimeLimit(episode_limit=0), r"TimeLimit\.episode_limit is 0"),
        (lambda: UnequalTeam(scouts=0), r"UnequalTeam\.scouts is 0"),
        (lambda: UnequalTeam(haulers=0), r"UnequalTeam\.haulers is 0"),
        (lambda: Aim(low=(0.0,)), r"Aim\.low is"),
        (lambda: Aim(low=(1.0, 1.0), high=(1.0, 2.0)), "each low below its high"),
        (lambda: Aim(low=(), high=()), r"Aim\.low"),
        (lambda: Combination(dials=()), r"Combination\.dials"),
        (lambda: Combination(dials=(3, 1)), "2 digits or more"),
        (lambda: Picture(size=5), "must be even"),
        (lambda: Picture(size=0), r"Picture\.size is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(make: Any, told: str):
    with pytest.raises(ConfigError, match=told):
        make()
