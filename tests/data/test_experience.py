from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from martes.data.experience import Episodes, Experience, Replayed, Rollouts, Transitions
from martes.data.priorities import Prioritised
from martes.data.replay import Folder
from martes.errors import ConfigError, DataError
from martes.maths.schedules import Linear
from martes.training import checkpoint
from tests.data.histories import SCHEMA, History
from tests.data.test_allocation import copied

NEVER, ALWAYS = [False, False], [True, True]
CUTS = [[False, False], [True, False], [False, True]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def replayed(of: Transitions | Episodes, capacity: int = 60, **options) -> Replayed:
    return Replayed(SCHEMA, generator(), of, capacity, **options)


def test_every_kind_is_an_experience():
    assert isinstance(Rollouts(5), Experience)
    assert not Rollouts(5).keeps_final
    assert isinstance(replayed(Episodes(2)), Experience)
    assert replayed(Episodes(2)).keeps_final


def test_a_rollout_is_handed_out_once():
    rollouts, (window, final) = Rollouts(2), History(2).window([NEVER] * 2)
    assert not list(rollouts.due(0))
    rollouts.add(window, final)
    assert list(rollouts.due(4)) == [window]
    assert not list(rollouts.due(4))
    assert rollouts.state_dict() == {}


# ------------------------------------------------------------------------------------------------------ how many, when
@given(st.integers(1, 9), st.integers(1, 6), st.sampled_from([0.29, 1 / 3, 0.01, 1, 2.5]), st.integers(0, 60))
def test_updates_follow_environment_steps_however_they_are_collected(envs, steps, ratio, warmup):
    history = History(envs)
    experience = replayed(Transitions(1), 1000, ratio=ratio, warmup=warmup, steps=steps)
    made = updates = 0
    for _ in range(min(100 // (envs * steps) + 1, 6)):
        experience.add(*history.window([[False] * envs] * steps))
        made += envs * steps
        updates += sum(1 for _ in experience.due(made))
        assert updates == max(0, floor(Fraction(ratio).limit_denominator(100) * (made - warmup)))
        assert not list(experience.due(made))


def test_learning_waits_for_a_batch_and_does_not_make_up_for_the_waiting():
    history, experience = History(2), replayed(Episodes(3), ratio=0.5)
    assert not list(experience.due(0))
    due = []
    for made in range(6, 40, 6):
        experience.add(*history.window(CUTS))
        due.append(len(list(experience.due(made))))
    assert due == [0, 3, 3, 3, 3, 3]  # two episodes a window: from the second window on, for its own six steps


def test_who_waits_for_a_larger_batch_goes_on_at_once_when_it_is_there():
    history, experience = History(2), replayed(Transitions(2), 1000)
    experience.add(*history.window([NEVER] * 3))
    assert len(list(experience.due(6))) == 6
    experience.of = Transitions(14)  # as a mutation makes it
    due = []
    for made in range(12, 40, 6):
        experience.add(*history.window([NEVER] * 3))
        due.append(len(list(experience.due(made))))
    assert due == [0, 6, 6, 6, 6]


def test_a_loop_that_stops_early_gets_the_rest_later():
    experience = replayed(Transitions(2), ratio=1)
    experience.add(*History(2).window([NEVER] * 3))
    next(experience.due(6))
    assert len(list(experience.due(6))) == 5


def test_too_small_a_store_is_an_error_not_a_silence():
    history, experience = History(2), replayed(Episodes(4), capacity=20)
    for made in (6, 12):
        experience.add(*history.window([NEVER] * 3))
        assert not list(experience.due(made))
    with pytest.raises(
        DataError, match=r"20 rows for 2 environments is full and holds 0 of the 4 .* raise its capacity"
    ):
        experience.add(*history.window([NEVER] * 6))
        list(experience.due(24))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "ratio is 0, warmup 0, steps 1"),
        ({"warmup": -1}, "warmup -1"),
        ({"steps": 0}, "steps 0"),
        ({"capacity": 10}, r"a replay of 10 rows is smaller than a batch of Episodes\(batch=32\)"),
    ],
)
def test_settings_that_cannot_be_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        replayed(Episodes(), **options)


@pytest.mark.parametrize(
    "make", [lambda: Episodes(0), lambda: Transitions(0), lambda: Transitions(1, 0), lambda: Transitions(1, 1, -1)]
)
def test_batches_that_cannot_be_are_named(make):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        make()


# -------------------------------------------------------------------------------------------------------------- draws
@pytest.mark.usefixtures("unchecked")
def test_every_step_is_equally_likely():
    history, experience = History(2), replayed(Transitions(20), 2000, ratio=1000 / 24)
    for cuts in ([NEVER] * 3, [ALWAYS] * 6, CUTS):  # episodes of one step: half of the rows are last observations
        experience.add(*history.window(cuts))
    steps = [row.seen for column in history.rows for row in column if row.is_step]
    drawn = torch.cat([batch["obs"][0, :, 0, 0].long() for batch in experience.due(24)])
    counts = torch.bincount(drawn, minlength=max(steps) + 1)
    assert counts.nonzero().squeeze(1).tolist() == sorted(steps)
    expected = len(drawn) / len(steps)
    assert len(drawn) == 1000 * 20
    assert ((counts[steps] - expected) ** 2 / expected).sum() < 55  # 23 degrees of freedom: 2 of 10,000


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("episodes", [6, 7, 200])
def test_every_set_of_episodes_is_equally_likely(episodes):
    history, experience = History(2), replayed(Episodes(6), 10_000, ratio=1)
    for _ in range(episodes // 2):
        experience.add(*history.window([ALWAYS]))
    if episodes % 2:
        experience.add(*history.window([[True, False]]))
    counts = torch.zeros(10_000)
    rounds = 400 if episodes > 10 else 300
    for batch in experience.due(rounds):
        assert len(batch["place"].unique()) == 6
        counts[batch["place"]] += 1
    counts = counts[counts > 0]
    assert len(counts) == episodes
    expected = 6 * rounds / episodes
    assert ((counts - expected) ** 2 / expected).sum() < 2 * episodes


@pytest.mark.usefixtures("unchecked")
def test_what_erred_most_is_drawn_most():
    history = History(2)
    config = Prioritised(alpha=1.0, beta=Linear(0.0, 1.0, 600))
    experience = replayed(Transitions(16), 600, ratio=1, prioritised=config)
    for _ in range(5):
        experience.add(*history.window(CUTS))
    favourite, counts = history.rows[1][4].seen, torch.zeros(600)
    for number, batch in enumerate(experience.due(600)):
        seen = batch["obs"][0, :, 0, 0].long()
        experience.prioritise(batch, torch.where(seen == favourite, 29.0, 1.0))
        if number >= 40:
            counts += torch.bincount(seen, minlength=600)
    share = counts / counts.sum()
    assert share[favourite] == pytest.approx(0.5, abs=0.03)  # 29 of 29 + 29
    weight = batch["weight"]
    assert weight[seen == favourite].tolist() == pytest.approx([1 / 29] * int((seen == favourite).sum()), rel=0.01)


@pytest.mark.parametrize("of", [Transitions(16, 3, 2), Episodes(4)])
def test_priorities_draw_only_what_is_held(of):
    history, experience = History(2), replayed(of, 40, ratio=1, prioritised=Prioritised())
    for made in range(6, 300, 6):
        experience.add(*history.window(CUTS))
        drawable = experience.of.is_drawable(experience._replay)
        assert (experience._priorities.tree.weights > 0).equal(drawable)
        for batch in experience.due(made):
            assert drawable[batch["place"]].all()
            experience.prioritise(batch, torch.rand(of.batch))


class Counting(TorchDispatchMode):
    """Counts what torch is asked to do."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prioritised", [None, Prioritised()])
@pytest.mark.parametrize("kind", [Transitions, Episodes])
def test_no_code_loops_over_the_samples(kind, prioritised):
    counts = []
    for batch in (5, 300):
        history = History(1)
        experience = replayed(kind(batch), 2000, ratio=1, prioritised=prioritised)
        experience.add(*history.window([[kind is Episodes]] * 400))  # last observations would be drawn again
        draws = experience.due(1)
        with Counting() as counting:
            assert next(draws).envs == batch
        counts.append(counting.count)
    assert abs(counts[0] - counts[1]) < 15


# ------------------------------------------------------------------------------------------------------------- resume
@pytest.mark.usefixtures("global_randomness_unused")
@pytest.mark.parametrize("windows", [0, 1, 30])
@pytest.mark.parametrize("of", [Transitions(8), Transitions(4, 3, 2), Episodes(3)], ids=["one", "sequence", "episodes"])
@pytest.mark.parametrize("prioritised", [None, Prioritised(beta=Linear(0.4, 1, 100))], ids=["uniform", "prioritised"])
def test_a_resumed_store_hands_out_the_same_batches(tmp_path, of, prioritised, windows):
    history, made = History(2), 0
    options = {"ratio": 0.3, "warmup": 5, "steps": 3, "prioritised": prioritised}

    def moved(experiences: list[Replayed]) -> list[list[torch.Tensor]]:
        nonlocal made
        window, final = history.window(CUTS)
        made += 6
        told = []
        for experience in experiences:
            experience.add(window, final)
            told.append([])
            for batch in experience.due(made):
                told[-1] += [batch[name].clone() for name in batch.names]
                experience.prioritise(batch, batch["obs"][0, :, 0, 0] % 7)
        return told

    first = replayed(of, 71, **options)
    for _ in range(windows):
        moved([first])
    checkpoint.save(tmp_path, first.state_dict(), 1, 1)
    second = replayed(of, 71, **options)
    second.load_state_dict(checkpoint.load(tmp_path / f"{1:012d}"))
    batches = 0
    for _ in range(12):
        one, other = moved([first, second])
        assert len(one) == len(other)
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))
        batches += len(one)
    assert batches


def test_a_folder_resumes_and_is_not_taken_for_a_new_run(tmp_path):
    history, folder = History(2), Folder(tmp_path, copied=False)
    options = {"ratio": 1, "folder": folder, "prioritised": Prioritised()}
    first = replayed(Transitions(4), 40, **options)
    for made in (6, 12, 18):
        first.add(*history.window(CUTS))
        list(first.due(made))
    state = copied(first.state_dict())
    for _ in range(2):
        first.add(*history.window(CUTS))
    held = first._replay.rows
    second = replayed(Transitions(4), 40, **options)
    second.load_state_dict(state)
    assert (second._priorities.tree.weights > 0).equal(second.of.is_drawable(second._replay))
    assert second._replay.rows < held  # what was written over since is gone, and never drawn
    assert len(list(second.due(24))) == 6
    with pytest.raises(DataError, match="holds the rows of an earlier run: resume that run, or name an empty folder"):
        replayed(Transitions(4), 40, **options).add(*History(2).window(CUTS))
