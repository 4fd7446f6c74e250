from pathlib import Path

from martes.report import Interval, records, results_table
from martes.report.records import Record


def cells(table):
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]


def run_of(returns, seed=0, speeds=(100.0,), finished=True):
    rows = [
        {"step": 100 * i, "time": 0.0, "kind": "evaluation", "evaluation/return": value}
        for i, value in enumerate(returns)
    ]
    rows += [{"step": 1, "time": 0.0, "kind": "train", "speed/env_steps_per_second": speed} for speed in speeds]
    steps = 100 * (len(returns) - 1)
    names = {"algorithm.name": "ppo", "algorithm.critic": "central", "env.name": "spread", "training.seed": seed}
    return Record(Path(f"run{seed}"), {**names, "training.steps": steps if finished else steps + 1}, rows)


def test_a_line_by_hand():
    runs = [run_of([1.0] * 10 + [5.0], 0, speeds=(90, 100, 1000)), run_of([1.0] * 10 + [9.0], 1, speeds=(200,))]
    heads, rule, line = cells(results_table(runs, {"spread": Interval(2, 1.5, 2.5)}))
    assert heads == [
        "experiment", "seeds", "steps", "at the end", "first tenth", "last tenth", "random play", "steps/s", "learned"
    ]  # fmt: skip
    assert rule == ["---"] + ["---:"] * 8
    assert line == ["mappo on spread", "2", "1,000", "7 [5, 9]", "1", "4 [3, 5]", "2 [1.5, 2.5]", "150", "yes"]


def test_learned_means_above_the_first_tenth_and_above_random_play():
    runs = [run_of([1.0] * 10 + [5.0], seed) for seed in (0, 1)]
    assert cells(results_table(runs))[2][-1] == "yes"
    assert cells(results_table(runs, {"spread": Interval(2, 1, 3)}))[2][-1] == "no"  # the last tenth is 3, not above 3
    assert cells(results_table(runs, {"other": Interval(2, 1, 3)}))[2][-1] == "yes"
    flat = [run_of([4.0] * 11, seed) for seed in (0, 1)]
    assert cells(results_table(flat))[2][-1] == "no"
    assert cells(results_table(runs[:1]))[2][-1] == "one seed"


def test_unfinished_runs_and_missing_numbers_show():
    (line,) = cells(results_table([run_of([1.0, 2.0], finished=False, speeds=())]))[2:]
    assert line[0] == "mappo on spread (unfinished)" and line[6] == line[7] == "-"
    (line,) = cells(results_table([run_of([])]))[2:]
    assert line[3:7] == ["-"] * 4 and line[-1] == "one seed"


def test_real_runs_make_a_table_with_a_line_for_each_experiment(runs):
    table = cells(results_table(records(runs)))
    assert [line[:3] for line in table[2:]] == [
        [f"{name} on climbing, epochs 1, minibatches 1, lr 0.0005, and 1 more", seeds, "1,600"]
        for name, seeds in (("ippo", "2"), ("mappo", "1"))
    ]
    assert all(float(line[7].replace(",", "")) > 0 for line in table[2:])
