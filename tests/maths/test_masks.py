"""Masked means: right by hand, equal to the mean of what is kept, and deaf to what is masked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.maths.masks import masked_logits, masked_mean, masked_variance, standardise


def test_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == pytest.approx(7 / 3)
    assert masked_mean(x, mask, 1).tolist() == [1.5, 4.0]
    assert masked_mean(x, mask, 0, keepdim=True).tolist() == [[2.5, 2.0, 0.0]]
    assert masked_mean(x, mask, (0, 1)).item() == pytest.approx(7 / 3)
    assert masked_variance(x, mask, 1).tolist() == [0.25, 0.0]
    assert masked_variance(x, mask).item() == pytest.approx((16 + 1 + 25) / 27)


def test_a_mask_broadcasts() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    mask = torch.tensor([[True], [False], [True]])
    assert masked_mean(x, mask).item() == 2.5
    assert masked_mean(x, mask, 0).tolist() == [2.0, 3.0]
    assert masked_variance(x, mask, 0).tolist() == [4.0, 4.0]
    assert standardise(x, mask)[1].tolist() == [0.0, 0.0]


@given(st.integers(0, 2**31), st.sampled_from([0.2, 0.8, 1.0]))
def test_equal_to_the_moments_of_what_is_kept(seed: int, density: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    mask = torch.rand(7, 3, generator=generator) < density
    mask[0, 0] = True
    kept = x[mask]
    torch.testing.assert_close(masked_mean(x, mask), kept.mean())
    torch.testing.assert_close(masked_variance(x, mask), kept.var(correction=0))
    if len(kept) > 1:
        expected = (kept - kept.mean()) / (kept.std(correction=0) + 1e-8)
        torch.testing.assert_close(standardise(x, mask)[mask], expected)


def test_where_nothing_is_valid_the_result_is_zero() -> None:
    x, mask = torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)
    assert masked_mean(x, mask).item() == 0
    assert masked_variance(x, mask, 1).tolist() == [0.0, 0.0]
    assert (standardise(x, mask) == 0).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("function", [masked_mean, masked_variance, standardise])
def test_masked_content_changes_no_value_and_no_gradient(function, poison: float) -> None:
    mask = torch.rand(6, 4) < 0.6
    clean = torch.randn(6, 4)
    weight = torch.randn(6, 4)

    def outcome(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.requires_grad_()
        result = function(x, mask)
        (gradient,) = torch.autograd.grad((result * weight).sum(), x)
        return result.detach(), gradient

    for expected, got in zip(outcome(clean), outcome(clean.masked_fill(~mask, poison)), strict=True):
        assert torch.equal(expected, got)
        assert expected.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_illegal_logits_are_the_smallest_finite_number(dtype: torch.dtype) -> None:
    logits = masked_logits(torch.zeros(2, 3, dtype=dtype), torch.tensor([True, False, True]))
    assert logits.dtype == dtype
    assert (logits[:, 1] == torch.finfo(dtype).min).all()
    assert logits.isfinite().all()
