"""MAT: its equations, the law of its two faces in every world, who knows what, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from martes.errors import ConfigError
from martes.networks import replay
from martes.networks.autoregressive import AutoregressiveTeam, EncoderDecoder
from martes.networks.layers import LayerNorm, RMSNorm, SwiGLU
from martes.networks.mat import MAT, Attention, MATShape
from tests.networks.sables import (
    MATS,
    Absence,
    check_compiles,
    check_faces,
    check_low_precision,
    crowd,
    dead_parameters,
    inputs_of,
    made,
    recorded,
)
from tests.worlds import WORLDS, World, crossed


def slowly_attended(attention: Attention, x: Tensor, y: Tensor, sees: Callable[[int, int], bool]) -> Tensor:
    """What tokens x [agent size] of one step are told by tokens y, number by number."""
    query, key, value = (torch.einsum("as,fs->af", z, w) for z, w in zip((x, y, y), attention.inward, strict=True))
    width = x.shape[1] // attention.heads
    told = torch.zeros_like(x)
    for head in range(attention.heads):
        of_head = slice(head * width, (head + 1) * width)
        for i in range(len(x)):
            seen = [j for j in range(len(y)) if sees(i, j)]
            weights = [math.exp((query[i, of_head] @ key[j, of_head]).item() / math.sqrt(width)) for j in seen]
            for j, weight in zip(seen, weights, strict=True):
                told[i, of_head] += weight / sum(weights) * value[j, of_head]
    return told @ attention.outward.T + attention.bias


def test_one_layer_is_its_equations() -> None:
    there = torch.tensor([True, False, True, True])
    mat = made(World(), MATShape(size=8, heads=2)).core
    assert isinstance(mat, MAT) and isinstance(mat, EncoderDecoder)
    with torch.no_grad():
        for attention in (each for each in mat.modules() if isinstance(each, Attention)):
            attention.bias.normal_()
    x, told = torch.randn(2, 4, 8)
    (encode,), (decode,) = mat.encoder.blocks, mat.decoder.blocks
    x0 = mat.encoder.norm(x)
    seen = encode.norm(x0 + slowly_attended(encode.attention, x0, x0, lambda i, j: bool(there[j])))
    tokens = encode.residual(seen)
    assert torch.allclose(tokens, encode.residual.norm(seen + encode.residual.layer(seen)))
    a = mat.decoder.norm(told)

    def before(i: int, j: int) -> bool:
        return j <= i and (bool(there[j]) or j == i)

    context = decode.own_norm(a + slowly_attended(decode.own, a, a, before))
    crossed = decode.crossed_norm(tokens + slowly_attended(decode.crossed, tokens, context, before))
    scores = mat.decoder.scores(mat.decoder.head(decode.residual(crossed)))
    window = mat.sequence(x[None, None], there[None, None], (), torch.zeros(1, 1, dtype=torch.bool))
    assert torch.allclose(window.tokens[0, 0], tokens, atol=1e-5)
    assert torch.allclose(window.scores(told[None, None])[0, 0, there], scores[there], atol=1e-5)
    turns = mat.step(x[None], there[None], ())
    carried, parts = turns.carried, []
    for i in range(4):
        part, carried = mat.turn(told[None, i : i + 1], turns.seen(i), carried)
        parts.append(part)
    acted = torch.cat(parts, dim=1)
    assert torch.allclose(acted[0, there], scores[there], atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("world", "sharing", "shape"), crossed([*WORLDS], ["shared", "group", "agent"], [*MATS]))
def test_sequence_is_the_loop_of_step_and_of_what_acted(world: str, sharing: str, shape: str) -> None:
    chain, workspace = recorded(WORLDS[world], MATS[shape], sharing)
    check_faces(chain, workspace)


@pytest.mark.parametrize("order", ["fixed", "drawn"])
@pytest.mark.parametrize("world", ["dying", "continuous", "multi-discrete-masked"])
def test_caches_change_no_result(world: str, order: str) -> None:
    shape = replace(MATS["cached"], order=order)
    (chain, cached), (_, repeated) = (
        recorded(WORLDS[world], replace(shape, caches=caches)) for caches in (True, False)
    )
    for name in chain.writes:
        assert torch.allclose(cached[name][cached.mask], repeated[name][cached.mask], atol=2e-5), name


def test_who_acts_first_is_drawn() -> None:
    chain, workspace = recorded(WORLDS["dying"], MATS["rms, gated, drawn order"])
    assert len({tuple(each) for each in workspace["order"].flatten(0, 1).tolist()}) == 6
    inputs = inputs_of(chain, workspace)
    inputs["order"] = inputs["order"].flip(2)
    out, _ = chain.sequence(inputs, (), workspace["start"][:12])
    assert not torch.allclose(out["log_prob"], workspace["log_prob"], atol=1e-2)
    assert torch.allclose(out["value"], workspace["value"], atol=1e-5)


@pytest.mark.parametrize("shape", ["cached", "named actions, no caches"])
def test_absent_agents_are_as_if_not_in_the_team(shape: str) -> None:
    Absence.drawn(replace(MATS[shape], names_actions=False)).check()


@pytest.mark.parametrize("there", [[False, False, False], [False, True, False], [False, False, True]])
def test_who_is_there_alone_or_nobody_leaves_numbers(there: list[bool]) -> None:
    network = made(World(), MATS["cached"])
    inputs = {
        "obs": torch.randn(2, 3, 6),
        "agent_mask": torch.tensor([there, [True, True, True]]),
        "action": torch.ones(2, 3, dtype=torch.int64),
    }
    window = {name: value.unsqueeze(0) for name, value in inputs.items()}
    stepped, sequenced = network.step(inputs, ())[0], network.sequence(window, (), torch.zeros(1, 2).bool())[0]
    for out in (stepped, sequenced):
        network.zero_grad()
        (out["log_prob"].sum() + out["value"].sum()).backward()
        assert all(each.isfinite().all() for each in out.values())
        assert all(each.grad is None or each.grad.isfinite().all() for each in network.parameters())


def test_an_agent_knows_the_actions_before_its_own_and_no_others() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6, agents=4), MATS["cached"])
    before = replay(chain, workspace, given=("action",))
    workspace["action"][2, :, 1] = (workspace["action"][2, :, 1] + 1) % 5
    after = replay(chain, workspace, given=("action",))
    same = torch.isclose(before["entropy"], after["entropy"], rtol=0, atol=1e-6)
    assert same[[0, 1, *range(3, 12)]].all() and same[2, :, :2].all() and not same[2, :, 2:].any()
    assert torch.equal(before["value"], after["value"]), "a value does not depend on actions"


def test_each_step_stands_alone_and_its_agents_do_not() -> None:
    chain, workspace = recorded(World(ends=0.0, limit=6), MATS["cached"])
    assert chain.initial_memory(4) == ()
    before = replay(chain, workspace, given=("action",))
    workspace["obs"][3, :, 2] += 1.0
    after = replay(chain, workspace, given=("action",))
    for name in ("value", "entropy"):
        changed = ~torch.isclose(before[name], after[name], rtol=0, atol=1e-6)
        assert changed[3].all(), "all agents of a step see each other"
        assert not changed[:3].any() and not changed[4:].any()
    seen = workspace.at(3, chain.reads)
    assert torch.equal(chain.value(seen, ()), chain.step(seen, ())[0]["value"])


def test_the_encoder_knows_no_order_of_agents_the_decoder_does() -> None:
    chain, workspace = recorded(WORLDS["discrete"], replace(MATS["cached"], agent_id=False), "shared")
    before = replay(chain, workspace, given=("action",))
    order = [1, 2, 0]
    for name in ("obs", "action"):
        workspace[name] = workspace[name][:, :, order].clone()
    after = replay(chain, workspace, given=("action",))
    assert torch.allclose(before["value"][:, :, order], after["value"], atol=1e-5)
    assert not torch.allclose(before["entropy"][:, :, order], after["entropy"], atol=1e-2)


@pytest.mark.parametrize(("world", "shape"), [*zip(["unequal", "multi-discrete", "continuous"], MATS, strict=True)])
def test_every_parameter_is_learned(world: str, shape: str) -> None:
    assert not dead_parameters(replace(WORLDS[world], has_deaths=False), MATS[shape])


def test_norms_and_layers_are_two_switches() -> None:
    for norm, its_norm in (("layer", LayerNorm), ("rms", RMSNorm)):
        for layer, its_layer in (("mlp", nn.Sequential), ("swiglu", SwiGLU)):
            network = AutoregressiveTeam(
                World().team, MATShape(norm=norm, feed_forward=layer), "shared", torch.Generator().manual_seed(0)
            )
            norms = {type(each) for each in network.modules() if isinstance(each, LayerNorm | RMSNorm)}
            assert norms == {its_norm}
            assert all(isinstance(each.layer, its_layer) for each in network.modules() if hasattr(each, "layer"))


def test_it_begins_near_uniform_and_as_mat_begins() -> None:
    core = MATShape(size=16).core(5, torch.Generator().manual_seed(0))
    for each in core.modules():
        if isinstance(each, Attention):
            for weight in (*each.inward, each.outward):
                assert torch.allclose(weight @ weight.T, 1e-4 * torch.eye(16), atol=1e-7)
    inward, _, outward = core.encoder.blocks[0].residual.layer
    assert torch.allclose(inward.weight @ inward.weight.T, 2 * torch.eye(16), atol=1e-5)
    assert torch.allclose(outward.weight @ outward.weight.T, 1e-4 * torch.eye(16), atol=1e-7)
    assert torch.allclose(core.decoder.scores.weight @ core.decoder.scores.weight.T, 1e-4 * torch.eye(5), atol=1e-7)


def test_layer_norm_is_that_of_torch_and_keeps_precision() -> None:
    norm, x = LayerNorm(6), torch.randn(3, 6)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    assert torch.equal(norm(x), functional.layer_norm(x, (6,), norm.weight, norm.bias))
    assert norm(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", ["cached", "rms, gated, drawn order"])
def test_low_precision_changes_little(shape: str) -> None:
    check_low_precision(MATS[shape])


def gradients(network: AutoregressiveTeam, inputs: dict[str, Tensor], loop: bool = False) -> tuple[list[Tensor], int]:
    """Those of all scores and values of a window, and the bytes that were saved for them."""
    start = torch.zeros(inputs["obs"].shape[:2], dtype=torch.bool)
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        if loop:
            out = [network.step({k: v[t] for k, v in inputs.items()}, ())[0] for t in range(len(start))]
        else:
            out = [network.sequence(inputs, (), start)[0]]
    there = inputs["agent_mask"].unbind() if loop else [inputs["agent_mask"]]
    total = sum(((each["log_prob"] + each["value"]).sin() * mask).sum() for each, mask in zip(out, there, strict=True))
    return list(torch.autograd.grad(total, [*network.parameters()])), sum(saved.values())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", ["cached", "named actions, no caches"])
def test_the_gradient_of_steps_is_that_of_the_window(shape: str) -> None:
    chain, workspace = recorded(WORLDS["dying"], MATS[shape])
    inputs = inputs_of(chain, workspace)
    whole, _ = gradients(chain.members[0], inputs)
    steps, _ = gradients(chain.members[0], inputs, loop=True)
    for one, other in zip(whole, steps, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
    assert max(each.abs().max() for each in whole) > 1e-1


@pytest.mark.usefixtures("unchecked")
def test_recomputed_blocks_save_memory_and_change_no_gradient() -> None:
    kept, inputs = crowd(16, MATShape(size=8, layers=4))
    again, _ = crowd(16, MATShape(size=8, layers=4, recompute=True))
    (one, much), (other, little) = gradients(kept, inputs), gradients(again, inputs)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))
    assert little < much / 2


@pytest.mark.usefixtures("unchecked")
def test_memory_to_learn_is_linear_in_agents() -> None:
    """No mask and no score of a pair of agents is kept: 1000 agents are 8 times as dear as 125."""
    sizes = [gradients(*crowd(agents, MATShape(size=8)))[1] for agents in (125, 1000)]
    assert sizes[1] < 8.1 * sizes[0]


def test_a_thousand_agents_in_one_pass() -> None:
    network, inputs = crowd(1000, MATShape(size=8))
    out, _ = network.sequence(inputs, (), torch.zeros(2, 1, dtype=torch.bool))
    assert out["value"].isfinite().all() and out["log_prob"].shape == (2, 1, 1000)


def test_both_faces_compile_as_one_graph() -> None:
    check_compiles(MATShape(size=8))


@pytest.mark.usefixtures("unchecked")
def test_impossible_shapes_are_refused_by_name() -> None:
    for name, value in (("size", 0), ("heads", 0), ("layers", -1)):
        with pytest.raises(ConfigError, match=rf"network\.{name} is {value}"):
            MATShape(**{name: value})
    with pytest.raises(ConfigError, match="3 heads cannot share"):
        MATShape(size=8, heads=3)
    with pytest.raises(ConfigError, match=r"network\.norm is 'batch'.*layer.*rms"):
        MATShape(norm="batch")
    with pytest.raises(ConfigError, match=r"network\.feed_forward is 'none'.*mlp.*swiglu"):
        MATShape(feed_forward="none")
