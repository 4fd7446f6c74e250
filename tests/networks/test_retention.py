"""Retention: its three evaluations against an independent slow recurrence, and every identity that it promises."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from martes.errors import ConfigError
from martes.networks import retention
from martes.networks.layers import RMSNorm
from martes.networks.retention import MultiScaleRetention, Timing, chunkwise, decays, recurrent

SCALES = (0.0, 0.3, 0.8, 1.0)
FEATURE = 3


@dataclass
class Case:
    """Tokens of a window, what was carried in, resets and who is there; all in double precision."""

    qkv: tuple[Tensor, Tensor, Tensor]
    state: Tensor
    start: Tensor
    mask: Tensor
    decay: Tensor

    @property
    def agents(self) -> int:
        return self.mask.shape[2]


def drawn(sizes: tuple[int, int, int, int], scale: float, resets: float, absent: float, seed: int = 0) -> Case:
    envs, time, agents, heads = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        tuple(normal(envs, time * agents, heads, FEATURE) for _ in range(3)),  # pyright: ignore
        normal(envs, heads, FEATURE, FEATURE),
        torch.rand(time, envs, generator=generator) < resets,
        torch.rand(envs, time, agents, generator=generator) >= absent,
        decays(heads, scale).double(),
    )


def slow(case: Case, sees_step: bool) -> tuple[Tensor, Tensor]:
    """The recurrence as one would write it down, step by step."""
    q, k, v = (each.unflatten(1, (-1, case.agents)) for each in case.qkv)
    state, outputs = case.state, []
    for t, opens in enumerate(case.start):
        state = torch.where(opens[:, None, None, None], 0.0, state * case.decay[:, None, None])
        added = torch.einsum("bnhi,bnhj,bn->bnhij", k[:, t], v[:, t], case.mask[:, t].to(state.dtype))
        after = state + added.sum(1)
        seen = after.unsqueeze(1).expand_as(added) if sees_step else state.unsqueeze(1) + added.cumsum(1)
        outputs.append(torch.einsum("bnhi,bnhij->bnhj", q[:, t], seen))
        state = after
    return torch.cat(outputs, dim=1), state


def by_chunks(case: Case, size: int, sees_step: bool) -> tuple[Tensor, Tensor]:
    evaluations = chunkwise(case.start, case.mask, case.decay, size)
    return (evaluations.observing if sees_step else evaluations.acting)(*case.qkv, case.state)


def by_steps(case: Case, sees_step: bool) -> tuple[Tensor, Tensor]:
    """As one acts: the state decays once a step, and is cleared where an episode opens."""
    state, outputs = case.state, []
    parts = [each.unflatten(1, (-1, case.agents)) for each in case.qkv]
    for t, opens in enumerate(case.start):
        state = state.masked_fill(opens[:, None, None, None], 0) * case.decay[:, None, None]
        turns = [slice(None)] if sees_step else [slice(i, i + 1) for i in range(case.agents)]
        for turn in turns:
            retained, state = recurrent(case.mask[:, t, turn])(*(each[:, t, turn] for each in parts), state)
            outputs.append(retained)
    return torch.cat(outputs, dim=1), state


def agree(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(one, other, strict=True))


sizes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(1, 3))
cases = st.builds(
    drawn,
    sizes,
    st.sampled_from(SCALES),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.4]),
    st.integers(0, 99),
)
both = pytest.mark.parametrize("sees_step", [True, False], ids=["observing", "acting"])


@both
@given(case=cases, size=st.integers(1, 50))
def test_all_evaluations_are_the_slow_recurrence(sees_step: bool, case: Case, size: int) -> None:
    expected = slow(case, sees_step)
    assert agree(by_chunks(case, size, sees_step), expected)
    assert agree(by_steps(case, sees_step), expected)


@both
@pytest.mark.parametrize("mixed", [2, 3, 64])
def test_states_are_joined_over_many_levels(sees_step: bool, mixed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MIXED", mixed)
    case = drawn((2, 37, 2, 2), 1.0, 0.1, 0.1)
    assert agree(by_chunks(case, 1, sees_step), slow(case, sees_step))  # one agent does not fit: steps by their states
    assert agree(by_chunks(case, 2, sees_step), slow(case, sees_step))


@both
def test_without_a_state_nothing_was_before(sees_step: bool) -> None:
    case = drawn((2, 5, 3, 2), 0.8, 0.2, 0.1)
    case.state.zero_()
    expected, after = slow(case, sees_step)
    for size in (1, 4, 6, 15):
        evaluations = chunkwise(case.start, case.mask, case.decay, size)
        out, left = (evaluations.observing if sees_step else evaluations.acting)(*case.qkv, None)
        assert agree((out,), (expected,)) and (left is None or agree((left,), (after,)))


def test_hand_worked() -> None:
    """One head, one feature, κ = 0.5 (s = 16/31), two agents, two steps, S_0 = 8; all of q and k are 1, v = 1 2 4 8."""
    ones = torch.ones(1, 4, 1, 1, dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64).view(1, 4, 1, 1)
    state, decay = torch.full((1, 1, 1, 1), 8.0, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    start = torch.zeros(2, 1, dtype=torch.bool)
    case = Case((ones, ones, values), state, start, torch.ones(1, 2, 2, dtype=torch.bool), decay)
    for size in (1, 2, 3, 4):
        assert by_chunks(case, size, True)[0].flatten().tolist() == [7.0, 7.0, 15.5, 15.5]
        assert by_chunks(case, size, False)[0].flatten().tolist() == [5.0, 7.0, 7.5, 15.5]
    case.start[1] = True
    assert by_chunks(case, 3, True)[0].flatten().tolist() == [7.0, 7.0, 12.0, 12.0]
    assert by_chunks(case, 3, False)[0].flatten().tolist() == [5.0, 7.0, 4.0, 12.0]


@both
@given(case=cases, first=st.integers(1, 8), size=st.integers(1, 20))
def test_two_windows_are_one(sees_step: bool, case: Case, first: int, size: int) -> None:
    time = len(case.start)
    first = min(first, time - 1)
    if first == 0:
        return
    cut = first * case.agents
    early = Case(tuple(x[:, :cut] for x in case.qkv), case.state, case.start[:first], case.mask[:, :first], case.decay)  # pyright: ignore
    out, state = by_chunks(early, size, sees_step)
    late = Case(tuple(x[:, cut:] for x in case.qkv), state, case.start[first:], case.mask[:, first:], case.decay)  # pyright: ignore
    rest, after = by_chunks(late, size, sees_step)
    assert agree((torch.cat((out, rest), 1), after), by_chunks(case, size, sees_step))


@both
@given(case=cases, size=st.integers(1, 50))
def test_gradients_agree(sees_step: bool, case: Case, size: int) -> None:
    inputs = (*case.qkv, case.state)
    for tensor in inputs:
        tensor.requires_grad_()
    found = []
    for out, after in (slow(case, sees_step), by_chunks(case, size, sees_step), by_steps(case, sees_step)):
        gradients = torch.autograd.grad(out.square().sum() + after.sin().sum(), inputs, allow_unused=True)
        zeros = [torch.zeros_like(each) for each in inputs]
        found.append(tuple(zero if g is None else g for g, zero in zip(gradients, zeros, strict=True)))
    assert agree(found[1], found[0]) and agree(found[2], found[0])


@both
@pytest.mark.parametrize("size", [2, 5, 100])
def test_nothing_crosses_a_reset_and_the_past_counts_without_one(sees_step: bool, size: int) -> None:
    case = drawn((2, 6, 3, 2), 1.0, 0.0, 0.0)
    case.start[3] = True
    before, after = by_chunks(case, size, sees_step)
    other = drawn((2, 6, 3, 2), 1.0, 0.0, 0.0, seed=1)
    case.state = other.state
    for mine, its in zip(case.qkv, other.qkv, strict=True):
        mine[:, :9] = its[:, :9]
    changed, state = by_chunks(case, size, sees_step)
    assert torch.equal(before[:, 9:], changed[:, 9:]) and torch.equal(after, state)
    assert not torch.isclose(before[:, :9], changed[:, :9]).any()
    case.start[3] = False
    assert not torch.isclose(before[:, 9:], by_chunks(case, size, sees_step)[0][:, 9:]).any()


@both
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_later_tokens_change_nothing_before_them(sees_step: bool, size: int) -> None:
    case = drawn((2, 4, 3, 2), 1.0, 0.0, 0.0)
    before, _ = by_chunks(case, size, sees_step)
    for each in case.qkv:
        each[:, 7] += 1.0  # the second agent of the third step
    after, _ = by_chunks(case, size, sees_step)
    first = 6 if sees_step else 7
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.isclose(before[:, first:], after[:, first:]).all(-1).any()


@given(case=cases, size=st.integers(1, 50), seed=st.integers(0, 99))
def test_observing_knows_no_order_of_agents(case: Case, size: int, seed: int) -> None:
    order = torch.randperm(case.agents, generator=torch.Generator().manual_seed(seed))
    out, after = by_chunks(case, size, True)
    permuted = tuple(x.unflatten(1, (-1, case.agents))[:, :, order].flatten(1, 2) for x in case.qkv)
    other = Case(permuted, case.state, case.start, case.mask[:, :, order], case.decay)  # pyright: ignore
    expected = out.unflatten(1, (-1, case.agents))[:, :, order].flatten(1, 2)
    assert agree(by_chunks(other, size, True), (expected, after))


@both
@given(case=cases, size=st.integers(1, 50))
def test_absent_tokens_change_nothing(sees_step: bool, case: Case, size: int) -> None:
    there = case.mask.flatten(1)
    before, after = by_chunks(case, size, sees_step)
    for each in case.qkv:
        each[~there] = 1e3
    changed, state = by_chunks(case, size, sees_step)
    assert torch.equal(before[there], changed[there]) and torch.equal(after, state)


@given(case=cases, size=st.integers(1, 50))
def test_one_agent_observes_as_it_acts(case: Case, size: int) -> None:
    alone = drawn((2, len(case.start), 1, 2), 0.8, 0.3, 0.2)
    assert agree(by_chunks(alone, size, True), slow(alone, False))


@both
def test_without_decay_scale_every_step_stands_alone(sees_step: bool) -> None:
    case = drawn((2, 5, 3, 2), 0.0, 0.3, 0.2)
    out, _ = by_chunks(case, 4, sees_step)
    for t in range(5):
        part = slice(3 * t, 3 * t + 3)
        alone = Case(
            tuple(x[:, part] for x in case.qkv),  # pyright: ignore
            torch.zeros_like(case.state),
            case.start[t : t + 1],
            case.mask[:, t : t + 1],
            decays(2, 1.0).double(),
        )
        assert agree(by_chunks(alone, 2, sees_step)[:1], (out[:, part],))


@both
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("time", "agents", "size"), [(4096, 1, 64), (4096, 1, 1), (1024, 4, 4096), (64, 64, 48)])
def test_long_windows_stay_exact_in_single_precision(
    sees_step: bool, scale: float, time: int, agents: int, size: int
) -> None:
    case = drawn((1, time, agents, 2), scale, 2 / time, 0.0)
    expected = slow(case, sees_step)
    single = Case(tuple(x.float() for x in case.qkv), case.state.float(), case.start, case.mask, case.decay.float())  # pyright: ignore
    for exact, rough in zip(expected, by_chunks(single, size, sees_step), strict=True):
        assert rough.dtype == torch.float32 and rough.isfinite().all()
        assert (rough - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("kappa", [0.0, 1e-30, 1 - 1e-7, 1.0])
def test_extreme_decays_neither_overflow_nor_vanish(kappa: float) -> None:
    case = drawn((1, 600, 1, 1), 1.0, 0.0, 0.0)
    case.decay = torch.tensor([kappa], dtype=torch.float64)
    for tensor in case.qkv:
        tensor.requires_grad_()
    for sees_step in (True, False):
        out, after = by_chunks(case, 128, sees_step)
        gradients = torch.autograd.grad(out.sum() + after.sum(), case.qkv)
        assert all(each.isfinite().all() for each in (out, after, *gradients))
        assert agree((out, after), slow(case, sees_step))


def test_decays_are_those_of_the_paper() -> None:
    assert torch.allclose(decays(1, 1.0), torch.tensor([0.96875]))
    expected = torch.tensor([1 - 2**-5, 1 - 2**-7, 1 - 2**-9])
    assert torch.allclose(decays(3, 0.5), 0.5 * expected)
    with pytest.raises(ConfigError, match=r"decay_scale is 1\.5"):
        decays(2, 1.5)


@pytest.mark.parametrize("size", [0, -3])
def test_chunks_hold_a_token(size: int) -> None:
    case = drawn((1, 2, 2, 1), 1.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match=f"chunk_size is {size}"):
        by_chunks(case, size, True)


class Layer:
    """A layer in double precision with weights large enough to be seen, and its input."""

    def __init__(self, size: int = 8, heads: int = 2) -> None:
        self.module = MultiScaleRetention(size, heads, torch.Generator().manual_seed(0)).double()
        with torch.no_grad():
            self.module.inward.mul_(5)
        self.case = drawn((2, 5, 3, heads), 0.8, 0.3, 0.2)
        self.state = torch.randn(2, heads, size // heads, size // heads, dtype=torch.float64)
        self.x = torch.randn(2, 15, size, dtype=torch.float64)

    def evaluation(self, size: int = 4) -> retention.Evaluation:
        return chunkwise(self.case.start, self.case.mask, self.case.decay, size).acting


@pytest.mark.parametrize("row", [0, 1, 2], ids=["query", "key", "value"])
def test_the_scale_of_queries_keys_and_values_is_no_matter(row: int) -> None:
    layer = Layer()
    layer.state.zero_()
    before, _ = layer.module(layer.x, Timing(), layer.evaluation(), layer.state)
    with torch.no_grad():
        layer.module.inward[8 * row : 8 * row + 4] *= 50.0  # the first head alone
    after, _ = layer.module(layer.x, Timing(), layer.evaluation(), layer.state)
    assert torch.allclose(before, after, rtol=1e-3)  # up to the norm's ε
    with torch.no_grad():
        layer.module.inward[24:28] *= 2.0
    assert not torch.allclose(before, layer.module(layer.x, Timing(), layer.evaluation(), layer.state)[0], rtol=1e-3)


def test_the_norm_and_its_gradient_are_those_of_torch() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    norm = RMSNorm(8).double()
    with torch.no_grad():
        norm.weight.normal_()
    assert torch.autograd.gradcheck(norm, x)
    expected = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-6)
    assert torch.allclose(norm(x), expected, rtol=1e-12)
    with torch.no_grad():
        assert torch.allclose(norm(x), expected, rtol=1e-12)


def test_each_head_is_normed_over_its_own_features() -> None:
    """With 32 features and 4 heads a norm over 2 features would leave signs alone: magnitudes must differ here."""
    module = MultiScaleRetention(32, 4, torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def evaluate(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(q)
        return q * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None], state

    with torch.no_grad():
        module.inward[96:] = 0.0
        module.inward[96:, 0] = 1e3  # gates far open: swish(1000) = 1000
        module.outward.copy_(torch.eye(32) / 1e3)
    x = torch.randn(1, 6, 32)
    x[..., 0] = 1.0
    out, _ = module(x, Timing(), evaluate, torch.zeros(1, 4, 8, 8))
    heads = out.unflatten(2, (4, 8))
    assert torch.allclose(heads.square().mean(-1), torch.ones(1, 6, 4), atol=2e-2)
    q = seen[0] * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None]
    assert torch.allclose(heads, q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt(), rtol=1e-3)
    assert heads.abs().std() > 0.3


def test_queries_from_elsewhere_are_the_same_map() -> None:
    layer, now = Layer(), Timing()
    asked = [None, layer.module.queries(layer.x, now), layer.module.queries(layer.x.flip(1), now)]
    own, given, other = (layer.module(layer.x, now, layer.evaluation(), layer.state, each)[0] for each in asked)
    assert torch.allclose(own, given) and not torch.allclose(own, other)


def test_low_precision_is_kept_out_of_retention_and_norms() -> None:
    module = MultiScaleRetention(8, 2, torch.Generator().manual_seed(0))
    case = drawn((2, 5, 3, 2), 0.8, 0.3, 0.0)
    x, state = torch.randn(2, 15, 8), torch.randn(2, 2, 4, 4)
    evaluations = chunkwise(case.start, case.mask, case.decay.float(), 4)
    for evaluate in (evaluations.observing, evaluations.acting, recurrent(case.mask.flatten(1))):
        dtypes: list[torch.dtype] = []

        def watched(q, k, v, s, evaluate=evaluate, dtypes=dtypes):
            q, k, v = (each.bfloat16() for each in (q, k, v))
            out, after = evaluate(q, k, v, s)
            dtypes.extend((out.dtype, after.dtype))
            exact = evaluate(q.float(), k.float(), v.float(), s)
            assert torch.equal(out, exact[0]) and torch.equal(after, exact[1])
            return out, after

        with torch.autocast("cpu", torch.bfloat16):
            out, _ = module(x, Timing(), watched, state)
            assert out.dtype == torch.bfloat16  # projections are cast down: there the time goes
            assert RMSNorm(8)(out).dtype == torch.float32
        assert dtypes == [torch.float32] * 2


def test_what_is_kept_for_the_gradient_grows_linearly() -> None:
    def kept(time: int, agents: int) -> int:
        case = drawn((1, time, agents, 1), 1.0, 0.0, 0.0)
        inputs = [x.float().requires_grad_() for x in case.qkv]
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        evaluations = chunkwise(case.start, case.mask, case.decay.float(), 16)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = [evaluate(*inputs, case.state.float())[0] for evaluate in evaluations]
        assert all(out.isfinite().all() for out in outputs)
        return sum(sizes.values())

    assert kept(256, 8) < 2.2 * kept(128, 8)
    assert kept(16, 256) < 2.2 * kept(16, 128)
    assert kept(4, 1024) < 2.2 * kept(4, 512)
