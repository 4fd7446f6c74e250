"""Sable: the law of its two faces in every world, and that all of it learns."""

from dataclasses import replace

import pytest
import torch

from martes.data.trees import leaves, mapped
from martes.errors import ConfigError
from martes.networks import AutoregressiveTeam, TemporalModule, replay
from martes.networks.autoregressive import UNROLLED
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from tests.networks.sables import (
    CLOSE,
    SHAPES,
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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("world", "sharing", "shape"), crossed([*WORLDS], ["shared", "group", "agent"], [*SHAPES][:3]))
def test_sequence_is_the_loop_of_step_and_of_what_acted(world: str, sharing: str, shape: str) -> None:
    chain, workspace = recorded(WORLDS[world], SHAPES[shape], sharing)
    check_faces(chain, workspace)


@pytest.mark.usefixtures("unchecked")
def test_a_continuous_action_is_scored_even_where_its_sample_was_not_recorded() -> None:
    chain, workspace = recorded(WORLDS["continuous"], SHAPES["memory"])
    told = replay(chain, workspace, given=("action",))
    inside = workspace["sample"].abs().amax(-1) < 3
    assert inside.float().mean() > 0.5
    assert torch.allclose(told["log_prob"][inside], workspace["log_prob"][inside], atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("world", ["dying", "continuous", "multi-discrete-masked"])
def test_every_shape_keeps_the_law(world: str, shape: str) -> None:
    chain, workspace = recorded(WORLDS[world], SHAPES[shape])
    whole = replay(chain, workspace, given=chain.members[0].given)
    for name in ("log_prob", "value"):
        one, other = whole[name][workspace.decided], workspace[name][workspace.decided]
        assert torch.allclose(one, other, atol=CLOSE[name]), name


@pytest.mark.parametrize("world", ["dying", "continuous"])
def test_memory_after_the_window_agrees_too(world: str) -> None:
    chain, workspace = recorded(WORLDS[world], SHAPES["memory"], time=11)
    start, inputs = workspace["start"][:11], inputs_of(chain, workspace)
    _, after = chain.sequence(inputs, workspace.memory, start)
    _, looped = TemporalModule.sequence(chain, inputs, workspace.memory, start)
    pairs = list(zip(leaves(after), leaves(looped), strict=True))
    assert [path for (path, _), _ in pairs] == ["encoder", "own", "crossed", "elapsed"]
    for (path, one), (_, other) in pairs:
        assert one.abs().sum() > 0
        assert torch.allclose(one, other, atol=2e-5), path


@pytest.mark.parametrize("first", [1, 5, 8])
def test_two_windows_are_one(first: int) -> None:
    chain, workspace = recorded(WORLDS["dying"], SHAPES["memory"])
    inputs, start = inputs_of(chain, workspace), workspace["start"][:12]
    whole, after = chain.sequence(inputs, workspace.memory, start)
    early, memory = chain.sequence({k: v[:first] for k, v in inputs.items()}, workspace.memory, start[:first])
    late, end = chain.sequence({k: v[first:] for k, v in inputs.items()}, memory, start[first:])
    for name in ("log_prob", "value"):
        assert torch.allclose(whole[name], torch.cat([early[name], late[name]]), atol=2e-5), name
    for (path, one), (_, other) in zip(leaves(after), leaves(end), strict=True):
        assert torch.allclose(one, other, atol=2e-5), path


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 36, 1000])
def test_chunk_size_changes_no_result(memory: bool, size: int) -> None:
    shape = replace(SHAPES["memory"], memory=memory)
    chain, workspace = recorded(WORLDS["dying"], shape)
    sable = chain.members[0]
    expected = replay(chain, workspace, given=("action",))
    sable.core.shape = replace(shape, chunk_size=size)
    found = replay(chain, workspace, given=("action",))
    for name in ("log_prob", "value", "entropy"):
        assert torch.allclose(found[name], expected[name], atol=2e-5), name


@pytest.mark.parametrize("world", ["unequal", "multi-discrete", "continuous"])
@pytest.mark.parametrize("shape", ["memory", "no memory", "named actions, no layers"])
def test_every_parameter_is_learned(world: str, shape: str) -> None:
    kind = replace(WORLDS[world], has_deaths=False)
    assert not dead_parameters(kind, replace(SHAPES[shape], decay_scale=0.9))


def test_a_greedy_step_takes_the_modes_and_draws_repeat() -> None:
    sable = made(World())
    inputs = {"obs": torch.randn(2, 3, 6), "agent_mask": torch.ones(2, 3, dtype=torch.bool)}
    greedy = sable.step(inputs, sable.initial_memory(2))[0]
    assert torch.equal(greedy["action"], sable.step(inputs, sable.initial_memory(2))[0]["action"])
    for other in range(5):  # no other action of the first agent is more probable
        given = {**inputs, "action": greedy["action"].clone()}
        given["action"][:, 0] = other
        assert (
            sable.step(given, sable.initial_memory(2))[0]["log_prob"][:, 0] <= greedy["log_prob"][:, 0] + 1e-6
        ).all()
    noise = sable.noise(2, torch.Generator().manual_seed(0))
    drawn = sable.step({**inputs, **noise}, sable.initial_memory(2))[0]["action"]
    assert torch.equal(drawn, sable.step({**inputs, **noise}, sable.initial_memory(2))[0]["action"])


def test_drawing_a_whole_window_is_drawing_its_steps() -> None:
    chain, workspace = recorded(WORLDS["masked"], SHAPES["memory"])
    generator = torch.Generator().manual_seed(1)
    noise = torch.stack([chain.noise(4, generator)["noise"] for _ in range(12)])
    inputs = {name: workspace[name][:12] for name in chain.reads} | {"noise": noise}
    out, _ = chain.sequence(inputs, workspace.memory, workspace["start"][:12])
    assert torch.equal(out["action"], workspace["action"])


def test_a_thousand_agents_in_one_pass() -> None:
    sable, inputs = crowd(1000, SableShape(size=8))
    out, _ = sable.sequence(inputs, sable.initial_memory(1), torch.zeros(2, 1, dtype=torch.bool))
    assert out["value"].isfinite().all() and out["log_prob"].shape == (2, 1, 1000)


def test_impossible_shapes_are_refused_by_name() -> None:
    for wrong, name in (({"size": 0}, "size"), ({"heads": 0}, "heads"), ({"layers": 0}, "layers")):
        with pytest.raises(ConfigError, match=f"network.{name} is 0"):
            SableShape(**wrong)
    with pytest.raises(ConfigError, match=r"network\.chunk_size is 0"):
        SableShape(chunk_size=0)
    with pytest.raises(ConfigError, match="5 heads cannot share"):
        SableShape(heads=5)
    with pytest.raises(ConfigError, match="decay_scale is 2"):
        SableShape(decay_scale=2.0)


def test_low_precision_changes_little() -> None:
    check_low_precision(SHAPES["memory"])


def test_memory_travels_by_environment() -> None:
    chain, workspace = recorded(WORLDS["dying"], SHAPES["memory"])
    inputs, start = inputs_of(chain, workspace), workspace["start"][:12]
    _, memory = chain.sequence(inputs, workspace.memory, start)
    order = torch.tensor([2, 0])
    whole, _ = chain.sequence(inputs, memory, start)
    rows = mapped(lambda leaf: leaf[order], memory)
    part, _ = chain.sequence({k: v[:, order] for k, v in inputs.items()}, rows, start[:, order])
    assert torch.allclose(part["value"], whole["value"][:, order], atol=1e-5)


@pytest.mark.parametrize("memory", [True, False])
def test_both_faces_compile_as_one_graph_and_so_does_a_turn(memory: bool) -> None:
    check_compiles(SableShape(size=8, memory=memory))


def test_what_is_compiled_does_not_grow_with_the_team() -> None:
    for shape, large in ((SableShape(size=8), ("turn",)), (MATShape(size=8), ())):
        for agents, hot in ((UNROLLED, ("step",)), (UNROLLED + 1, large)):
            assert AutoregressiveTeam(World(agents=agents).team, shape, "shared", torch.Generator()).hot == hot
