"""Sables of several shapes, and windows in which they acted: for the tests of what they promise."""

import torch
from torch import Tensor

from martes.data import Field, Schema, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Chain, act
from martes.networks.autoregressive import AutoregressiveTeam
from martes.networks.sable import SableShape
from tests.worlds import World

SHAPES = {
    "memory": SableShape(size=8, heads=2, layers=2, decay_scale=1.0, chunk_size=5),
    "no memory": SableShape(size=8, heads=2, layers=2, memory=False, chunk_size=2),
    "one chunk, no clock": SableShape(size=8, decay_scale=0.8, chunk_size=1000, time_encoding="none"),
    "drawn order, turned": SableShape(size=8, heads=2, decay_scale=1.0, time_encoding="rotary", order="drawn"),
    "named actions, no layers": SableShape(size=8, chunk_size=1, names_actions=True, feed_forward=False),
}


def enlivened(sable: AutoregressiveTeam, scale: float = 2.0) -> AutoregressiveTeam:
    """With weights so large that everything which should matter is seen to matter."""
    with torch.no_grad():
        for name, weight in sable.named_parameters():
            if "inward" in name or "outward" in name:
                weight.mul_(scale)
        sable.core.decoder.scores.weight.mul_(100)
        sable.head.linear.weight.mul_(100)
    return sable


def made(world: World, shape: SableShape = SHAPES["memory"], sharing: str = "group") -> AutoregressiveTeam:
    return enlivened(AutoregressiveTeam(world.team, shape, sharing, torch.Generator().manual_seed(7)))  # pyright: ignore


def recorded(world: World, shape: SableShape, sharing: str = "group", time: int = 12) -> tuple[Chain, Workspace]:
    """A window in which it acted, resets and cuts inside."""
    env = BatchedEnv(world, 4)
    sable = made(world, shape, sharing)
    written = sable.fields() | {"entropy": Field(writer="the policy")}
    workspace = Workspace(Schema.from_team(env.team).extended(**written), time=time, envs=4)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    sable.writes = (*sable.writes, "entropy")
    chain = Chain(env, sable)
    workspace.memory = chain.initial_memory(4)
    act(chain, workspace, 0, time, generator=torch.Generator().manual_seed(1))
    assert workspace["start"][1:].any(), "a window without resets tests nothing"
    return chain, workspace


def inputs_of(chain: Chain, workspace: Workspace) -> dict[str, Tensor]:
    names = (*chain.reads, *chain.members[0].given)
    return {name: workspace[name][: workspace.time] for name in names}
