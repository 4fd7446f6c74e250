"""Moments against one pass over everything; intervals against numbers that are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martes.maths.statistics import (
    Moments,
    bootstrap_interval,
    empty_moments,
    interquartile_mean,
    merged_moments,
    normalised,
)


def test_by_hand() -> None:
    moments = merged_moments(empty_moments(), torch.tensor([1.0, 2.0, 3.0]))
    assert [part.item() for part in moments] == [3.0, 2.0, 2.0]
    moments = merged_moments(moments, torch.tensor([[6.0, 99.0]]), torch.tensor([[True, False]]))
    assert [part.item() for part in moments] == pytest.approx([4.0, 3.0, 4 + 1 + 0 + 9])
    assert normalised(torch.tensor([3.0, 30.0]), moments, 5.0).tolist() == [0.0, 5.0]
    assert normalised(torch.tensor(6.0), moments).item() == pytest.approx(3 / math.sqrt(14 / 4))


@given(st.integers(0, 2**31), st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_merging_is_one_pass_over_everything(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    batches = [1e3 + torch.randn(2, size, 4, 3, generator=generator) for size in sizes]  # slot row row feature
    masks = [torch.rand(2, size, 4, generator=generator) < 0.7 for size in sizes]
    moments = empty_moments((2,), (3,))
    for batch, mask in zip(batches, masks, strict=True):
        moments = merged_moments(moments, batch.masked_fill(~mask.unsqueeze(-1), math.nan), mask)
    for slot in range(2):
        kept = torch.cat([b[slot][m[slot]] for b, m in zip(batches, masks, strict=True)]).double()
        assert moments.seen[slot].item() == len(kept)
        if len(kept) > 0:
            torch.testing.assert_close(moments.mean[slot], kept.mean(0))
            torch.testing.assert_close(moments.variance()[slot], kept.var(0, correction=0), rtol=1e-6, atol=1e-9)


def test_nothing_is_lost_far_from_zero() -> None:
    # A one-pass float32 sum of squares has no correct digit here.
    x = 1e4 + torch.randn(20, 5000)
    moments = empty_moments()
    for batch in x:
        moments = merged_moments(moments, batch)
    torch.testing.assert_close(moments.variance(), x.double().var(correction=0), rtol=1e-7, atol=0.0)


def test_the_batch_is_left_as_it_was() -> None:
    batch = torch.tensor([1.0, 2.0], dtype=torch.float64)
    merged_moments(empty_moments(), batch)
    assert batch.tolist() == [1.0, 2.0]


def test_slots_keep_apart() -> None:
    moments = merged_moments(empty_moments((2,)), torch.tensor([[1.0, 3.0], [10.0, 10.0]]))
    assert moments.mean.tolist() == [2.0, 10.0]
    x = torch.tensor([[2.0, 3.0], [10.0, 11.0]])
    assert normalised(x, moments, 10.0).tolist() == [[0.0, pytest.approx(1.0)], [0.0, 10.0]]


def test_before_anything_was_seen_normalising_changes_nothing() -> None:
    x = torch.tensor([[-3.0, 0.5]])
    torch.testing.assert_close(normalised(x, empty_moments((), (2,))), x)
    empty = merged_moments(empty_moments(), torch.tensor([math.nan]), torch.tensor([False]))
    assert [part.item() for part in empty] == [0.0, 0.0, 0.0]


def test_a_constant_feature_stays_finite() -> None:
    moments = merged_moments(empty_moments(), torch.full((7,), 0.1))
    assert normalised(torch.tensor([0.1]), moments).abs().item() < 1e-3
    assert isinstance(moments, Moments)


def test_interquartile_mean_by_hand() -> None:
    values = torch.tensor([100.0, 1.0, 2.0, 3.0, -100.0, 4.0, 5.0, 60.0])
    assert interquartile_mean(values).item() == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])).tolist() == [3.0, 1.0]


def test_bootstrap_interval_of_the_mean_is_the_normal_one() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator)
    low, high = bootstrap_interval(values, 0.95, generator, resamples=4000)
    half_width = 1.96 * values.std().item() / 20
    assert low.item() == pytest.approx(values.mean().item() - half_width, abs=0.01)
    assert high.item() == pytest.approx(values.mean().item() + half_width, abs=0.01)
    again = torch.Generator().manual_seed(1)
    narrow = bootstrap_interval(values, 0.5, again)
    assert low < narrow[0] < narrow[1] < high


def test_strata_are_resampled_apart() -> None:
    # The seeds differ, the runs inside a seed do not: drawn apart nothing varies, pooled first the mean would.
    values = torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0]])
    generator = torch.Generator().manual_seed(0)
    assert [end.item() for end in bootstrap_interval(values, 0.95, generator)] == [3.0, 3.0]
    low, high = bootstrap_interval(values.flatten(), 0.95, generator)
    assert low < 3 < high
    medians = bootstrap_interval(values, 0.95, generator, 100, interquartile_mean)
    assert [end.item() for end in medians] == [3.0, 3.0]


def test_strata_of_unequal_sizes_are_pooled_run_by_run() -> None:
    generator = torch.Generator().manual_seed(0)
    uneven = [torch.full((3,), 1.0), torch.full((1,), 5.0)]
    assert [end.item() for end in bootstrap_interval(uneven, 0.95, generator)] == [2.0, 2.0]
    values = torch.randn(2, 9)
    of_rows, of_tensor = (
        bootstrap_interval(each, 0.9, torch.Generator().manual_seed(7), statistic=interquartile_mean)
        for each in ([*values], values)
    )
    assert of_rows == of_tensor


def test_the_same_generator_gives_the_same_interval() -> None:
    values = torch.randn(9)
    first, second = (bootstrap_interval(values, 0.9, torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0, math.nan])
def test_an_impossible_level_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level is"):
        bootstrap_interval(torch.zeros(3), level, torch.Generator())
