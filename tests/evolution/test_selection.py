"""Who goes on, against hand-worked generations."""

from collections import Counter

import pytest
import torch

from martes.errors import ConfigError
from martes.evolution.selection import RandomSearch, Successor, Tournament, Truncation, best

INF = float("inf")


def test_the_best_of_equals_is_the_first():
    assert best([1.0, 3.0, 3.0, -INF]) == 1


def test_the_elite_goes_on_as_it_is_and_the_rest_are_copies():
    chosen = Tournament(2).successors([1.0, 4.0, 2.0, 3.0], torch.Generator().manual_seed(0))
    assert chosen[0] == Successor(1, is_copy=False)
    assert all(each.is_copy for each in chosen[1:])
    assert len(chosen) == 4
    without = Tournament(2, elitism=False).successors([1.0, 4.0], torch.Generator().manual_seed(0))
    assert len(without) == 2
    assert all(each.is_copy for each in without)


def test_winners_come_as_often_as_the_tournament_says():
    """With two rivals of four, drawn with replacement, the k-th best wins with probability (2 (4 - k) + 1) / 16."""
    generator = torch.Generator().manual_seed(0)
    scores, wins = [0.0, 1.0, 2.0, 3.0], Counter[int]()
    for _ in range(2000):
        wins.update(each.place for each in Tournament(2).successors(scores, generator)[1:])
    shares = [wins[place] / wins.total() for place in range(4)]
    assert shares == pytest.approx([1 / 16, 3 / 16, 5 / 16, 7 / 16], abs=0.02)


def test_a_tournament_of_all_is_always_won_by_the_best_of_those_drawn():
    chosen = Tournament(1).successors([0.0, 5.0], torch.Generator().manual_seed(3))
    assert chosen[0].place == 1


def test_truncation_copies_the_best_over_the_worst_and_leaves_the_rest_alone():
    scores = [5.0, 1.0, 7.0, 3.0, 6.0, 2.0, 4.0, 0.0]
    seen = set()
    for seed in range(40):
        chosen = Truncation(0.25).successors(scores, torch.Generator().manual_seed(seed))
        copies = {place: each.place for place, each in enumerate(chosen) if each.is_copy}
        assert set(copies) == {1, 7}
        seen |= set(copies.values())
        assert all(each == Successor(place, False) for place, each in enumerate(chosen) if place not in copies)
    assert seen == {2, 4}


def test_random_search_leaves_everybody_alone():
    chosen = RandomSearch().successors([1.0, 2.0], torch.Generator())
    assert chosen == (Successor(0, False), Successor(1, False))


@pytest.mark.parametrize(
    ("selection", "size", "told"),
    [
        (Tournament(5), 4, "evolution.tournament is 5: it must be 1 to evolution.population, 4"),
        (Truncation(0.6), 4, "evolution.share is 0.6"),
        (Truncation(0.25), 1, "population of at least 2"),
    ],
)
def test_a_population_that_is_too_small_is_refused(selection, size: int, told: str):
    with pytest.raises(ConfigError, match=told):
        selection.refuse_unfit(size)
    RandomSearch().refuse_unfit(1)
