import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from martes.data import Field, Memory, Schema, TimeStep, Workspace
from martes.data.replay import Replay, cell
from martes.envs.batched.engine import BatchedEnv
from martes.errors import DataError
from martes.maths.returns import lambda_returns, n_step_returns
from martes.networks import Chain, Network, Policy, act
from tests.data.histories import SCHEMA, SEEN, History, Row, episode, observed
from tests.worlds import WORLDS


@st.composite
def stories(draw):
    """Columns, rows of a ring, and windows of cuts [time][column]; None: the environments were made anew."""
    columns = draw(st.integers(1, 3))
    likely = draw(st.sampled_from([0.05, 0.3, 0.8]))
    a_cut = st.floats(0, 1).map(lambda x: x < likely)
    a_window = st.lists(st.lists(a_cut, min_size=columns, max_size=columns), min_size=1, max_size=9)
    return columns, draw(st.integers(3, 25)), draw(st.lists(st.none() | a_window, min_size=1, max_size=12))


def told(columns: int, slots: int, windows: list, **options) -> tuple[History, Replay]:
    """A history and the replay that heard it, whose capacity does not divide among its columns."""
    history = History(columns)
    replay = Replay(SCHEMA, columns=columns, capacity=columns * slots + columns - 1, **options)
    for cuts in windows:
        tell(history, [replay], cuts)
    return history, replay


def tell(history: History, replays: list[Replay], cuts: list[list[bool]] | None) -> None:
    if cuts is None:
        history.is_anew = True
    else:
        window, final = history.window(cuts)
        for replay in replays:
            replay.add(window, final)


def assert_sequence(batch: Workspace, index: int, rows: list[Row], skipped: int = 0) -> None:
    """One column of a batch is exactly these rows (the last one is what followed), and padding."""
    steps, time = len(rows) - 1, batch.time
    assert batch["counted"][:, index].tolist() == [skipped <= t < steps for t in range(time)]
    truth = observed(torch.tensor([row.seen for row in rows]))
    for name in SEEN:
        assert torch.equal(batch[name][: steps + 1, index], truth[name]), name
        fill = 0 if name == "agent_mask" else SCHEMA[name].fill
        assert (batch[name][steps + 1 :, index] == fill).all(), name
    numbers = torch.tensor([row.seen for row in rows[:-1]])
    assert batch["action"][:steps, index, 0].tolist() == (numbers % 50).tolist()
    assert batch["reward"][:steps, index].tolist() == [[row.seen, -row.seen] for row in rows[:-1]]
    assert batch["discount"][:steps, index, 0].tolist() == (numbers % 3 > 0).float().tolist()
    assert not batch["reward"][steps:, index].any()
    assert batch["start"][:, index].tolist() == [row.opens for row in rows] + [False] * (time - steps)
    cut = [row.cut for row in rows[:-1]] + [False] * (time - steps)
    cut[steps - 1] |= steps < time  # whatever is known of it ends here
    assert batch["cut"][:, index].tolist() == cut
    assert batch["role"][index].tolist() == [rows[0].role] * 2
    assert torch.equal(batch.mask[:steps, index], truth["agent_mask"][:steps])
    assert not batch.mask[steps:, index].any()


def held(history: History, slots: int) -> dict[int, tuple[list[Row], int]]:
    """Place -> the rows of the column that has a step there, and where among them it is."""
    found: dict[int, tuple[list[Row], int]] = {}
    for column in range(history.columns):
        rows = history.kept(column, slots)
        for index, row in enumerate(rows):
            if row.is_step:
                found[history.place(column, slots, index)] = rows, index
    return found


def steps_back(rows: list[Row], index: int, most: int) -> int:
    back = 0
    while back < min(most, index) and not rows[index - back].opens:
        back += 1
    return back


def assert_replay(history: History, replay: Replay, length: int = 1, burn_in: int = 0) -> None:
    """Every sequence and every episode that the replay can give is one that the slow lists hold."""
    steps = held(history, replay.slots)
    complete = {place: episode(rows, index) for place, (rows, index) in steps.items() if rows[index].opens}
    complete = {place: rows for place, rows in complete.items() if rows[-2].cut}
    lengths = dict(enumerate(replay.streams.lengths.tolist()))
    assert {place for place, number in lengths.items() if number >= 0} == set(steps)
    assert {p: number for p, number in lengths.items() if number > 0} == {p: len(r) - 1 for p, r in complete.items()}
    assert replay.episode_count == len(complete)
    if steps:
        batch = replay.sequences(torch.tensor(list(steps)), length, burn_in)
        assert batch.time == length + burn_in
        assert batch["place"].tolist() == list(steps)
        for number, (rows, index) in enumerate(steps.values()):
            back = steps_back(rows, index, burn_in)
            assert_sequence(batch, number, rows[index - back : index] + episode(rows, index)[: length + 1], back)
    if complete:
        batch = replay.episodes(torch.tensor(list(complete)))
        assert batch.time == max(len(rows) - 1 for rows in complete.values())  # cropped to the longest
        for number, rows in enumerate(complete.values()):
            assert_sequence(batch, number, rows)


# ---------------------------------------------------------------------------------------------- against a slow store
@pytest.mark.usefixtures("unchecked")
@settings(max_examples=60)
@given(stories(), st.integers(1, 6), st.integers(0, 4))
def test_whatever_the_windows_cuts_and_capacity_it_holds_what_lists_of_rows_would(story, length, burn_in):
    columns, slots, windows = story
    history = History(columns)
    replay = Replay(SCHEMA, columns=columns, capacity=columns * slots + columns - 1)
    for cuts in windows:
        tell(history, [replay], cuts)
        assert_replay(history, replay, length, burn_in)


@pytest.mark.usefixtures("unchecked")
@example((2, 3, [[[True, False]]]), 0)  # columns of unequal length, into a replay with a past
@given(stories(), st.integers(0, 11))
def test_a_loaded_state_goes_on_as_the_one_that_was_saved(story, at):
    columns, slots, windows = story
    history, replay = told(columns, slots, windows[:at])
    fresh = Replay(SCHEMA, columns=columns, capacity=columns * slots)
    for _ in range(2):  # into an empty one, and into one with a past
        fresh.load_state_dict(replay.state_dict())
        assert_replay(history, fresh, 3, 2)
        fresh.add(*History(columns).window([[True] * columns] * 5))
    fresh.load_state_dict(replay.state_dict())
    for cuts in windows[at:]:
        tell(history, [replay, fresh], cuts)
        assert_replay(history, fresh, 3, 2)
    for name, part in replay.state_dict().items():
        same = fresh.state_dict()[name]
        assert torch.equal(part, same) if isinstance(part, torch.Tensor) else part == same
    if replay.episode_count:
        one, other = (torch.Generator().manual_seed(3) for _ in range(2))
        count = replay.episode_count
        assert replay.streams.drawn_episodes(count, one).equal(fresh.streams.drawn_episodes(count, other))
        assert replay.streams.drawn_steps(9, one).equal(fresh.streams.drawn_steps(9, other))


@pytest.mark.usefixtures("unchecked")
def test_a_thousand_windows_that_do_not_divide_the_ring():
    history, replay = told(1, 100, [])
    for _ in range(1000):
        window, final = history.window([[False]] * 7)
        replay.add(window, final)
    assert (replay.rows, replay.is_full) == (99, True)  # and one for what is seen now
    assert_replay(history, replay, 2, 1)


# ------------------------------------------------------------------------------------------------------ what it means
def test_the_successor_of_a_last_step_is_the_real_last_observation():
    history, replay = told(1, 50, [[[False], [True], [False]]])
    batch = replay.sequences(torch.tensor([1]))
    last, following = history.rows[0][2].seen, history.rows[0][3].seen
    assert batch["obs"][1, 0, 0, 0] == last != following
    assert batch["cut"].all()


def test_an_episode_of_t_steps_takes_t_plus_one_rows():
    _, replay = told(2, 50, [[[False, True], [True, True]]])
    assert replay.rows == (2 + 1) + 2 * (1 + 1)
    assert replay.episode_count == 3


@given(stories(), st.floats(0, 1), st.integers(1, 5))
def test_targets_of_a_padded_batch_are_those_of_each_episode_alone(story, lambda_, n):
    columns, _, windows = story
    _, replay = told(columns, 200, windows)
    places = replay.streams.lengths.gt(0).nonzero().squeeze(1)
    if len(places) == 0:
        return
    places = places[:20]

    def targets(batch: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        value, discount = batch["obs"][..., 0], batch["discount"] * 0.9
        step = batch["reward"], value[1:], discount, batch["cut"]
        return lambda_returns(*step, lambda_), n_step_returns(*step, n)

    batch = replay.episodes(places)
    together = targets(batch)
    for index, place in enumerate(places):
        alone = replay.episodes(place[None])
        for padded, exact in zip(together, targets(alone), strict=True):
            assert torch.allclose(padded[: alone.time, index], exact[:, 0])
    assert batch["counted"].sum() == replay.streams.lengths[places].sum()  # as many as there were real steps


def test_an_n_step_target_is_blind_to_the_next_episode():
    history, replay = told(1, 50, [[[False], [True], [False], [False]]])
    place, n = torch.tensor([0]), 4
    batch = replay.sequences(place, n)
    value = batch["obs"][..., 0]
    # r_0 + γ (r_1 + γ V(last)), by hand: seen are 1, 2, then 3 for the last time; discounts 1, 1
    g = 0.9
    one, other = history.rows[0][0], history.rows[0][1]
    discount = torch.full_like(batch["discount"], g)
    got = n_step_returns(batch["reward"], value[1:], discount, batch["cut"], n)[0, 0, 0]
    assert got == pytest.approx(one.seen + g * (other.seen + g * history.rows[0][2].seen))
    for name in ("obs", "reward"):
        rows = replay.state_dict()[f"rows/{name}"]
        rows[:, 3:] = torch.nan  # all that came later
    assert replay.sequences(place, n)["obs"].isfinite().all()
    assert replay.sequences(place, n)["reward"].isfinite().all()


def test_what_is_not_known_yet_shortens_a_sequence_and_bootstraps_from_what_is_seen_now():
    history, replay = told(1, 50, [[[False]] * 3])
    batch = replay.sequences(torch.tensor([1]), 4)
    assert batch["counted"][:, 0].tolist() == [True, True, False, False]
    assert batch["cut"][:, 0].tolist() == [False, True, False, False]
    assert batch["obs"][2, 0, 0, 0] == history.seen[0]
    tell(history, [replay], [[False]] * 3)
    assert replay.sequences(torch.tensor([1]), 4)["counted"].all()


def test_environments_made_anew_end_their_episodes_as_a_time_limit_does():
    history, replay = told(1, 50, [[[False]] * 3])
    last = history.seen[0]
    tell(history, [replay], None)
    tell(history, [replay], [[False]] * 2)
    batch = replay.episodes(torch.tensor([0]))
    assert batch.time == 3
    assert batch["obs"][3, 0, 0, 0] == last
    assert batch["cut"][:, 0].tolist() == [False, False, True]
    assert batch["discount"][2, 0].tolist() == [1, 1] if history.rows[0][2].seen % 3 else [0, 0]
    assert_replay(history, replay, 3, 2)


def test_an_episode_longer_than_the_ring_is_no_whole_episode_but_has_steps():
    history, replay = told(1, 8, [[[False]] * 20 + [[True]] + [[False]] * 2])
    assert replay.episode_count == 0
    assert_replay(history, replay, 3, 5)


# ------------------------------------------------------------------------------------------------------ dtypes, bytes
def test_what_is_stored_keeps_its_dtype_and_takes_no_more():
    _, replay = told(2, 10, [[[True, False]] * 3])
    batch = replay.sequences(torch.tensor([0]))
    assert (batch["picture"].dtype, batch["action_mask"].dtype) == (torch.uint8, torch.bool)
    per_row = sum(torch.empty(cell(SCHEMA, name), dtype=field.dtype).nbytes for name, field in SCHEMA.items())
    _, replay = told(2, 10, [[[True, False]] * 3] * 4)
    rows = [part for name, part in replay.state_dict().items() if name.startswith("rows/")]
    assert sum(part.nbytes for part in rows) == 2 * 10 * per_row
    assert not any("next" in name for name in replay.state_dict())


def test_a_narrower_dtype_is_checked_to_lose_nothing():
    schema = Schema({**SCHEMA, "action": Field((), torch.int8), "obs": Field((2,), torch.float16, extra_row=True)}, 2)
    replay, history = Replay(schema, columns=1, capacity=30), History(1)
    window, final = history.window([[False], [True]])
    replay.add(window, final)
    batch = replay.sequences(torch.tensor([1]))
    assert (batch["action"].dtype, batch["obs"].dtype) == (torch.int8, torch.float16)
    assert batch["action"].tolist() == window["action"][1:2].tolist()
    window, final = history.window([[False]])
    window["action"] = torch.full((1, 1, 2), 200)
    with pytest.raises(DataError, match=r"'action' holds 200, which torch.int8 cannot: keep it as torch.int64"):
        replay.add(window, final)


# --------------------------------------------------------------------------------------------------------- bad input
def test_what_does_not_fit_is_named():
    history = History(2)
    window, final = history.window([[True, False], [False, True]])
    replay = Replay(SCHEMA, columns=2, capacity=40)
    with pytest.raises(DataError, match="2 episodes of this window were cut, and of 0 the real last 'obs' is given"):
        replay.add(window)
    with pytest.raises(DataError, match="and of 0 the real last 'state'"):
        replay.add(window, {name: value for name, value in final.items() if name != "state"})
    with pytest.raises(DataError, match="a window of 2 environments for a replay of 3"):
        Replay(SCHEMA, columns=3, capacity=40).add(window, final)
    with pytest.raises(DataError, match="no field 'other'"):
        Replay(SCHEMA.extended(other=Field()), columns=2, capacity=40).add(window, final)
    wide = Schema({**SCHEMA, "obs": Field((3,), extra_row=True)}, 2)
    with pytest.raises(DataError, match=r"'obs' of the window is Field\(shape=\(2,\).* only dtypes may differ"):
        Replay(wide, columns=2, capacity=40).add(window, final)
    with pytest.raises(DataError, match="each needs three"):
        Replay(SCHEMA, columns=2, capacity=5)
    with pytest.raises(DataError, match="needs the field 'start'"):
        Replay(Schema({name: SCHEMA[name] for name in ("agent_mask", "cut")}, 2), columns=2, capacity=40)
    with pytest.raises(DataError, match="holds no steps yet"):
        replay.streams.drawn_steps(1, torch.Generator())
    with pytest.raises(DataError, match="2 episodes of a replay that holds 0"):
        replay.streams.drawn_episodes(2, torch.Generator())
    window["start"][2, 1] = False
    with pytest.raises(DataError, match="environment 1: step 2 of the window must open an episode exactly where"):
        replay.add(window, final)


def test_a_window_that_goes_on_where_the_last_one_was_cut_is_refused():
    history, replay = told(1, 10, [[[True]]])
    window, final = history.window([[False]])
    window["start"][0] = False
    with pytest.raises(DataError, match="environment 0: step 0 of the window must open an episode"):
        replay.add(window, final)


# ------------------------------------------------------------------------------------------------- from environments
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("world", ["masked", "dying", "image", "multi-discrete-masked", "continuous"])
def test_the_windows_and_last_observations_of_an_environment_fit(world):
    game = WORLDS[world]
    env = BatchedEnv(game, 3)
    policy = Policy(game.team, Network(), "shared", torch.Generator().manual_seed(0))
    schema = Schema.from_team(game.team)
    window = Workspace(schema.extended(**policy.fields()), time=9, envs=3)
    replay = Replay(schema, columns=3, capacity=3 * 200)
    window.write(9, {**(first := env.reset(5)).seen, "start": first.start})
    lasts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def keep(t: int, step: TimeStep, memory: Memory) -> None:
        lasts.append((step.cut, dict(step.final or {})))

    told: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(5):
        window.carry()
        lasts.clear()
        act(Chain(env, policy), window, 0, 9, generator=torch.Generator().manual_seed(1), on_cut=keep)
        final = {name: torch.cat([last[name][cut] for cut, last in lasts]) for name in lasts[0][1]} if lasts else None
        changes = replay.add(window, final)
        batch = replay.sequences(changes.steps)
        for name in schema:
            if not schema[name].extra_row:
                assert torch.equal(batch[name][0], window[name].flatten(0, 1)), name
        for name in final or {}:
            assert torch.equal(batch[name][1][batch["cut"][0]], final[name]), name
            following = window[name][1:].flatten(0, 1)[~batch["cut"][0]]
            assert torch.equal(batch[name][1][~batch["cut"][0]], following), name
        told.append((window["cut"].clone(), window["reward"].clone()))
    assert replay.episode_count == sum(int(cut.sum()) for cut, _ in told) > 3
    whole = replay.episodes(replay.streams.lengths.gt(0).nonzero().squeeze(1))
    assert whole["start"][0].all()
    assert whole["cut"].sum() == replay.episode_count
    assert whole.time <= game.limit
