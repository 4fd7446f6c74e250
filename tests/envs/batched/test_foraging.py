"""Foraging is the game of lbforaging 2.0.0: equal steps from equal states, starts drawn alike, names read alike."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import gymnasium
import lbforaging  # noqa: F401  registers the package's tasks
import numpy as np
import pytest
import torch
from lbforaging.foraging.environment import Action, ForagingEnv

from martes.data import Discrete, Vector, VectorEnv
from martes.envs.batched.engine import BatchedEnv, State
from martes.envs.batched.foraging import ACTIONS, LOAD, Foraging, foraging
from martes.errors import ConfigError

NONE, NORTH, SOUTH, WEST, EAST = range(5)
GENERATOR = torch.Generator()  # steps leave nothing to chance


def original(game: Foraging) -> ForagingEnv:
    env = ForagingEnv(
        players=game.agents,
        min_player_level=game.min_agent_level,
        max_player_level=game.max_agent_level,
        min_food_level=game.min_food_level,
        max_food_level=game.max_food_level,
        field_size=game.size,
        max_num_food=game.food,
        sight=max(game.size) if game.sight is None else game.sight,
        max_episode_steps=game.episode_limit,
        force_coop=game.coop,
        normalize_reward=game.normalise_reward,
        penalty=game.penalty,
    )
    # The package swaps rows and columns in its space, and so refuses its own observations where they are unequal.
    anything = gymnasium.spaces.Box(-1, 99, env.observation_space[0].shape)
    env.observation_space = gymnasium.spaces.Tuple([anything] * game.agents)
    return env


def cell(game: Foraging, row: int, column: int) -> int:
    """Cells are counted on the field with its border."""
    return (row + 1) * (game.size[1] + 2) + column + 1


def state_of(game: Foraging, env: ForagingEnv) -> State:
    """The package's state as one environment of ours, in float64."""
    nowhere = cell(game, *game.size)
    food = [(cell(game, row, column), env.field[row, column]) for row, column in zip(*env.field.nonzero(), strict=True)]
    food += [(nowhere, 0)] * (game.food - len(food))
    return {
        "agent": torch.tensor([[cell(game, *player.position) for player in env.players]]),
        "agent_level": torch.tensor([[player.level for player in env.players]], dtype=torch.float64),
        "food": torch.tensor([[at for at, _ in food]]),
        "food_level": torch.tensor([[level for _, level in food]], dtype=torch.float64),
        "spawned": torch.tensor([env._food_spawned], dtype=torch.float64),
    }


def joined(states: list[State]) -> State:
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def legal(env: ForagingEnv) -> np.ndarray:
    return np.array([[action in env._valid_actions[player] for action in Action] for player in env.players])


def eager(env: ForagingEnv, rng: np.random.Generator) -> list[int]:
    """Legal and illegal actions; often all head for the same food, and who stands beside food mostly lifts it."""
    count = len(env.players)
    to_food = np.argwhere(env.field)[0] - [player.position for player in env.players]
    ways = np.where(to_food > 0, (SOUTH, EAST), (NORTH, WEST))
    way = ways[np.arange(count), np.where(to_food == 0, -1, rng.random((count, 2))).argmax(1)]
    action = np.where(rng.random(count) < 0.5, way, rng.integers(0, len(ACTIONS), count))
    return np.where(legal(env)[:, LOAD] & (rng.random(count) < 0.7), LOAD, action).tolist()


def events(
    env: ForagingEnv, action: list[int], was_legal: np.ndarray, before: list, rewards: list, eaten: int
) -> Counter:
    """What the package did in a step, counted from outside."""
    after = [player.position for player in env.players]
    chosen = [(agent, each) for agent, each in enumerate(action) if was_legal[agent, each]]
    lifted = [agent for agent, each in chosen if each == LOAD]
    return Counter(
        illegal=len(action) - len(chosen),
        load=eaten,
        joint_load=eaten == 1 and sum(reward > 0 for reward in rewards) > 1,
        failed_load=sum(rewards[agent] <= 0 for agent in lifted),
        collision=sum(NONE < each < LOAD and before[agent] == after[agent] for agent, each in chosen),
        shared_cell=len(set(after)) < len(after),
        swap=any(
            after[one] == before[other] != after[other] == before[one]
            for one, other in combinations(range(len(after)), 2)
        ),
    )


CONFIGS = {
    "8x8-2p-2f": foraging("Foraging-8x8-2p-2f-v3"),
    "8x8-2p-2f-coop": foraging("Foraging-8x8-2p-2f-coop-v3"),
    "2s-8x8-2p-2f-coop": foraging("Foraging-2s-8x8-2p-2f-coop-v3"),
    "2s-10x10-3p-3f": foraging("Foraging-2s-10x10-3p-3f-v3"),
    "15x15-4p-5f": foraging("Foraging-15x15-4p-5f-v3"),
    "crowded": Foraging(size=(5, 5), agents=6, food=1, episode_limit=10),
    "oblong, near-sighted, penalty": Foraging(size=(9, 5), agents=4, food=4, sight=1, penalty=0.3),
    "strong, raw rewards": replace(
        Foraging(size=(5, 8), agents=3, food=3, sight=3, max_agent_level=3, min_food_level=2, max_food_level=5),
        **{"normalise_reward": False, "penalty": 0.1, "episode_limit": 20},
    ),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_steps_equal_the_package(config: str) -> None:
    game, copies, steps = CONFIGS[config], 8, 220
    rng = np.random.default_rng(len(config))
    envs = [original(game) for _ in range(copies)]
    for index, env in enumerate(envs):
        env.reset(seed=index)
    state = joined([state_of(game, env) for env in envs])
    counted = Counter()
    for _ in range(steps):
        seen = game.observe(state)
        assert seen["obs"].dtype == torch.float64
        np.testing.assert_array_equal(seen["obs"].numpy(), np.stack([np.stack(env._make_gym_obs()) for env in envs]))
        masks = np.stack([legal(env) for env in envs])
        np.testing.assert_array_equal(seen["action_mask"].numpy(), masks)

        action = [eager(env, rng) for env in envs]
        before = [([player.position for player in env.players], np.count_nonzero(env.field)) for env in envs]
        outcome = game.advance(state, torch.tensor(action), GENERATOR)
        answers = [env.step(each) for env, each in zip(envs, action, strict=True)]
        np.testing.assert_allclose(outcome.reward.numpy(), [answer[1] for answer in answers], rtol=0, atol=1e-9)
        limit = [env.current_step >= game.episode_limit for env in envs]
        assert outcome.over is not None and outcome.discount is None
        ends = outcome.over.numpy() | limit
        assert ends.tolist() == [answer[2] for answer in answers]
        for index, (env, answer) in enumerate(zip(envs, answers, strict=True)):
            places, food = before[index]
            eaten = int(food - np.count_nonzero(env.field))
            counted += events(env, action[index], masks[index], places, answer[1], eaten)
            counted += Counter(over=outcome.over[index].item(), limit=limit[index] and not outcome.over[index].item())

        states = [
            {name: tensor[index : index + 1] for name, tensor in outcome.state.items()} for index in range(copies)
        ]
        for index in ends.nonzero()[0]:
            # The package compares the state after the end as well: the real last observation must agree.
            np.testing.assert_array_equal(game.observe(states[index])["obs"][0].numpy(), np.stack(answers[index][0]))
            envs[index].reset()
            states[index] = state_of(game, envs[index])
        state = joined(states)
    expected = {"illegal", "load", "joint_load", "failed_load", "collision", "over", "limit"}
    if config in ("crowded", "oblong, near-sighted, penalty", "strong, raw rewards"):
        expected |= {"shared_cell", "swap"}
    assert not {name for name in expected if not counted[name]}, counted


def columns(*values: torch.Tensor) -> list[tuple]:
    return [tuple(row) for row in torch.stack(values, 1).tolist()]


LAWS = {
    "all food": lambda start: columns(*start["food"].T),
    "all levels": lambda start: columns(*start["agent_level"].T, *start["food_level"].T),
    "first agent": lambda start: columns(start["agent"][:, 0], start["agent_level"][:, 0]),
    "food and its level": lambda start: columns(start["food"][:, 1], start["food_level"][:, 1]),
    "between agents": lambda start: columns(start["agent"][:, 0] - start["agent"][:, 2]),
    "between agent and food": lambda start: columns(start["agent"][:, 1] - start["food"][:, 0]),
}


def test_starts_are_drawn_like_the_package() -> None:
    """Two-sample chi-square tests on the joint law of all food cells, and on agents and levels."""
    game, count = Foraging(size=(6, 6), agents=3, food=3), 3000
    env = original(game)
    env.reset(seed=3)
    package: list[State] = []
    for _ in range(count):
        for player in env.players:
            player.position = None  # else the package keeps agents off the cells where the last episode ended
        env.reset()
        package.append(state_of(game, env))
    theirs, ours = joined(package), game.initial(4 * count, torch.Generator().manual_seed(1))

    for what, law in LAWS.items():
        assert chi_square_score(law(ours), law(theirs)) < 4, what
    fewer = (ours["food_level"] == 0).any(1).double().mean()
    assert 0.01 < fewer < 0.99, "this field was meant to be too small for all food at times"


def chi_square_score(one: list[tuple], other: list[tuple]) -> float:
    """How many standard deviations the two-sample chi-square statistic lies above its mean, rare cells joined."""
    first, second = Counter(one), Counter(other)
    common = [key for key in first | second if first[key] + second[key] >= 20]
    table = np.array([[counts[key] for key in common] for counts in (first, second)], dtype=float)
    rest = np.array([[len(one)], [len(other)]]) - table.sum(1, keepdims=True)
    table = np.concatenate((table, rest), 1)[:, np.append(np.ones(len(common), dtype=bool), rest.sum() > 0)]
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    freedom = table.shape[1] - 1
    return float((((table - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize(
    "game",
    [
        Foraging(),
        Foraging(coop=True),
        Foraging(size=(7, 12), agents=9, food=4, max_agent_level=4, min_food_level=2),
        Foraging(size=(6, 6), agents=35, food=3, coop=True),
        Foraging(size=(3, 4), agents=1, food=1, max_food_level=3),
    ],
)
def test_starts_obey_the_rules(game: Foraging) -> None:
    state = game.initial(2000, torch.Generator().manual_seed(0))
    (rows, columns), width = game.size, game.size[1] + 2
    assert state["agent_level"].dtype == torch.get_default_dtype()
    assert (state["agent"].sort(1).values.diff(dim=1) > 0).all(), "two agents on one cell"
    agent_row, agent_column = state["agent"] // width - 1, state["agent"] % width - 1
    assert agent_row.amin() == agent_column.amin() == 0
    assert (agent_row.amax(), agent_column.amax()) == (rows - 1, columns - 1)
    grown = state["food_level"] > 0
    assert torch.equal(grown, state["food"] != cell(game, rows, columns)) and grown.any()
    row, column = state["food"] // width - 1, state["food"] % width - 1
    assert ((row >= 1) & (row <= rows - 2) & (column >= 1) & (column <= columns - 2))[grown].all()
    assert not (state["food"][:, :, None] == state["agent"][:, None]).any()
    for one, other in combinations(range(game.food), 2):
        both = grown[:, one] & grown[:, other]
        down, right = (row[:, one] - row[:, other]).abs(), (column[:, one] - column[:, other]).abs()
        assert (torch.maximum(down, right) > 1)[both].all() and (down + right > 2)[both].all()
        assert (state["food"][:, one] < state["food"][:, other])[both].all(), "food is kept row by row"
    level = state["agent_level"]
    assert (level.amin(), level.amax()) == (game.min_agent_level, game.max_agent_level)
    highest = level.sort(1).values[:, :3].sum(1, keepdim=True)
    if game.max_food_level is not None:
        highest = torch.full_like(highest, game.max_food_level)
    lowest = highest if game.coop else torch.full_like(highest, game.min_food_level)
    assert ((state["food_level"] >= lowest) & (state["food_level"] <= highest))[grown].all()
    assert torch.equal(state["spawned"], state["food_level"].sum(1))


def placed(game: Foraging, agents: list[tuple[int, int, int]], food: list[tuple[int, int, int]]) -> State:
    """One environment from (row, column, level) of agents and food."""
    return {
        "agent": torch.tensor([[cell(game, row, column) for row, column, _ in agents]]),
        "agent_level": torch.tensor([[float(level) for *_, level in agents]]),
        "food": torch.tensor([[cell(game, row, column) for row, column, _ in food]]),
        "food_level": torch.tensor([[float(level) for *_, level in food]]),
        "spawned": torch.tensor([float(sum(level for *_, level in food))]),
    }


@pytest.mark.parametrize(
    ("options", "reward"),
    [
        ({}, [3 * 1 / (3 * 5), 3 * 2 / (3 * 5), 0.0]),
        ({"normalise_reward": False}, [3.0, 6.0, 0.0]),
        ({"penalty": 0.25}, [3 * 1 / (3 * 5), 3 * 2 / (3 * 5), -0.25]),
    ],
)
def test_reward_by_hand(options: dict, reward: list[float]) -> None:
    """Levels 1 and 2 lift a 3; the third agent (level 1) lifts a 2 in vain."""
    game = Foraging(size=(6, 6), agents=3, **options)
    state = placed(game, [(1, 2, 1), (2, 1, 2), (4, 3, 1)], [(2, 2, 3), (4, 4, 2)])
    given = {name: tensor.clone() for name, tensor in state.items()}
    outcome = game.advance(state, torch.full((1, 3), LOAD), GENERATOR)
    torch.testing.assert_close(outcome.reward, torch.tensor([reward]))
    assert outcome.state["food_level"].tolist() == [[0, 2]] and outcome.over.tolist() == [False]
    assert all(torch.equal(state[name], given[name]) for name in given), "the given state was written to"
    # What is gone makes room, in the observation as on the field.
    seen = game.observe(outcome.state)
    assert seen["obs"][0, 1].tolist() == [4, 4, 2, -1, -1, 0, 2, 1, 2, 1, 2, 1, 4, 3, 1]
    assert seen["action_mask"][0, 0].tolist() == [True] * 5 + [False]
    assert seen["action_mask"][0, 2].tolist() == [True, True, True, True, False, True]


def test_moves_by_hand() -> None:
    """Two swap; two head for one cell and stay; a fifth enters the cell that one of those failed to leave."""
    game = Foraging(size=(6, 6), agents=5, food=1)
    state = placed(game, [(0, 0, 1), (0, 1, 1), (2, 1, 1), (2, 3, 1), (3, 1, 1)], [(4, 4, 1)])
    after = game.advance(state, torch.tensor([[EAST, WEST, EAST, WEST, NORTH]]), GENERATOR).state["agent"]
    assert after.tolist() == [[cell(game, *at) for at in ((0, 1), (0, 0), (2, 1), (2, 3), (2, 1))]]


def test_window_by_hand() -> None:
    """Near the corner, agents (not food) are seen up to twice the sight away from it."""
    game = Foraging(size=(8, 8), agents=3, food=2, sight=2)
    state = placed(game, [(0, 0, 1), (4, 4, 2), (5, 5, 1)], [(2, 2, 1), (3, 5, 2)])
    obs = game.observe(state)["obs"][0].tolist()
    assert obs[0] == [2, 2, 1, -1, -1, 0, 0, 0, 1, 4, 4, 2, -1, -1, 0]
    assert obs[1] == [0, 0, 1, 1, 3, 2, 2, 2, 2, 3, 3, 1, -1, -1, 0]
    assert obs[2] == [0, 2, 2, -1, -1, 0, 2, 2, 1, 1, 1, 2, -1, -1, 0]


def test_engine_tells_the_end_of_the_food_from_the_time_limit() -> None:
    game = Foraging(size=(4, 5), agents=2, food=1, max_food_level=1, episode_limit=6)
    env = BatchedEnv(game, 64)
    assert isinstance(env, VectorEnv)
    env.reset(0)
    generator, ends = torch.Generator().manual_seed(0), Counter()
    for _ in range(40):
        step = env.step(torch.randint(0, 6, (64, 2), generator=generator))
        terminated = step.discount[:, 0] == 0
        assert torch.equal(step.discount[:, 0], step.discount[:, 1]) and (step.cut | ~terminated).all()
        if step.final is not None:
            is_empty = step.final["obs"][:, 0, 2] == 0
            assert torch.equal(is_empty[step.cut], terminated[step.cut])
            assert torch.equal(step.seen["obs"][step.cut, 0, 2], torch.ones(int(step.cut.sum())))
        torch.testing.assert_close(step.reward.sum(1), terminated.float())  # one food: its loading is the whole return
        ends += Counter(over=int(terminated.sum()), limit=int((step.cut & ~terminated).sum()))
    assert ends["over"] > 20 and ends["limit"] > 20


def test_equal_seeds_give_equal_futures() -> None:
    envs = [BatchedEnv(Foraging(agents=3, sight=2, episode_limit=4), 5) for _ in range(2)]
    runs = [[env.reset(3), *(env.step(torch.ones(5, 3, dtype=torch.long)) for _ in range(9))] for env in envs]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.seen["obs"], other.seen["obs"])
    assert not torch.equal(envs[0].reset(4).seen["obs"], runs[0][0].seen["obs"])


def test_team() -> None:
    team = Foraging(agents=3, food=4).team
    assert team.agents == ("agent_0", "agent_1", "agent_2") and dict(team.groups) == {"agent": (0, 1, 2)}
    assert team.observation == {"agent": Vector(21)} and team.action == {"agent": Discrete(6)}
    assert (team.state, team.episode_limit, team.masks_actions) == (None, 50, True)


def test_names_mean_what_the_package_registers() -> None:
    specs = [spec for spec in gymnasium.registry.values() if spec.id.startswith("Foraging-") and "grid" not in spec.id]
    assert len(specs) > 900
    for spec in specs:
        game, told = foraging(spec.id), spec.kwargs
        assert game == foraging(f"lbforaging:{spec.id.removesuffix('-v3')}")
        assert (game.size, game.agents, game.food) == (told["field_size"], told["players"], told["max_num_food"])
        assert (max(game.size) if game.sight is None else game.sight) == told["sight"]
        levels = (game.min_agent_level, game.max_agent_level, game.min_food_level, game.max_food_level)
        names = ("min_player_level", "max_player_level", "min_food_level", "max_food_level")
        assert levels == tuple(told[name] for name in names)
        assert (game.coop, game.penalty) == (told["force_coop"], told["penalty"])
        assert game.episode_limit == told["max_episode_steps"]


def test_names_beyond_the_registered_ones() -> None:
    assert foraging("Foraging-15x15-3p-5f-v3") == Foraging(size=(15, 15), agents=3, food=5)
    assert foraging("Foraging-15x15-4p-5f-coop-v3") == Foraging(size=(15, 15), agents=4, food=5, coop=True)
    assert foraging("Foraging-3s-7x9-2p-2f-ind-pen-v3") == replace(
        Foraging(size=(7, 9), sight=3), max_food_level=1, penalty=0.1
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Foraging-8x8-2p-2f-copo-v3", "did you mean 'Foraging-8x8-2p-2f-coop-v3'"),
        ("Foraging-8x8-2p-2f-v2", r"\[-coop\]\[-ind\]\[-pen\]-v3"),
        ("Foraging-grid-8x8-2p-2f-v3", "names no foraging task"),
        ("Foraging-8x8-0p-2f-v3", r"Foraging\.agents is 0: it must be 1 to 63"),
    ],
)
def test_malformed_names_are_refused(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        foraging(name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": (2, 8)}, "size is"),
        ({"agents": 64}, "agents is 64: it must be 1 to 63"),
        ({"food": 0}, "food is 0"),
        ({"sight": 0}, "sight is 0"),
        ({"min_agent_level": 0}, "min_agent_level is 0"),
        ({"max_agent_level": 0}, "max_agent_level is 0"),
        ({"min_food_level": 3}, "min_food_level is 3: it must be 1 to 2"),
        ({"max_food_level": 0}, "max_food_level is 0"),
        ({"penalty": -0.1}, "penalty is -0.1"),
        ({"penalty": float("nan")}, "penalty is nan"),
        ({"episode_limit": 0}, "episode_limit is 0"),
    ],
)
def test_impossible_options_are_refused(options: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Foraging(**options)


def test_frame_shows_the_food_until_it_is_loaded() -> None:
    game = Foraging(size=(6, 6), agents=2, food=1)
    state = placed(game, [(2, 1, 1), (0, 0, 1)], [(2, 2, 1)])
    after = game.advance(state, torch.tensor([[LOAD, NONE]]), GENERATOR).state
    before, later = game.frame(state), game.frame(after)
    assert before.shape == (400, 400, 3) and before.dtype == np.uint8
    changed = (before != later).any(2)
    assert changed.any() and not changed[:, :120].any() and not changed[:120].any() and not changed[210:].any()
