"""Sables and MATs of several shapes, windows in which they acted, and what all that act in turn must promise."""

import subprocess
import sys
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from martes.data import Discrete, Schema, TeamSpec, Vector, Workspace
from martes.data.trees import leaves
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Chain, act, replay
from martes.networks.autoregressive import AutoregressiveTeam, TurnShape
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from tests.worlds import WORLDS, World

SHAPES = {
    "memory": SableShape(size=8, heads=2, layers=2, decay_scale=1.0, chunk_size=5, retention_init="faint"),
    "no memory": SableShape(size=8, heads=2, layers=2, memory=False, chunk_size=2, retention_init="faint"),
    "one chunk, no clock": SableShape(size=8, chunk_size=1000, time_encoding="none", retention_init="faint"),
    "drawn order, turned": SableShape(size=8, heads=2, decay_scale=1.0, time_encoding="rotary", order="drawn"),
    "named actions, no layers": SableShape(size=8, chunk_size=1, names_actions=True, feed_forward=False),
}

MATS = {
    "cached": MATShape(size=8, heads=2, layers=2),
    "rms, gated, drawn order": MATShape(size=8, norm="rms", feed_forward="swiglu", order="drawn"),
    "named actions, no caches": MATShape(size=8, heads=4, names_actions=True, caches=False),
}


def enlivened(team: AutoregressiveTeam) -> AutoregressiveTeam:
    """With weights so large that everything which should matter is seen to matter."""
    with torch.no_grad():
        for name, weight in team.core.named_parameters():
            if weight.ndim > 1 and weight.std() * weight.shape[-1] ** 0.5 < 0.05:
                weight.mul_(100)  # what begins near 0
            elif "inward" in name or "outward" in name:
                weight.mul_(2)
        team.head.linear.weight.mul_(100)
    return team


def made(world: World, shape: TurnShape = SHAPES["memory"], sharing: str = "group") -> AutoregressiveTeam:
    return enlivened(AutoregressiveTeam(world.team, shape, sharing, torch.Generator().manual_seed(7)))  # pyright: ignore


def recorded(world: World, shape: TurnShape, sharing: str = "group", time: int = 12) -> tuple[Chain, Workspace]:
    """A window in which it acted, resets and cuts inside."""
    env = BatchedEnv(world, 4)
    sable = made(world, shape, sharing)
    workspace = Workspace(Schema.from_team(env.team).extended(**sable.fields()), time=time, envs=4)
    first = env.reset(3)
    workspace.write(0, {**first.seen, "start": first.start})
    chain = Chain(env, sable)
    workspace.memory = chain.initial_memory(4)
    act(chain, workspace, 0, time, generator=torch.Generator().manual_seed(1))
    assert workspace["start"][1:].any(), "a window without resets tests nothing"
    return chain, workspace


def inputs_of(chain: Chain, workspace: Workspace) -> dict[str, Tensor]:
    names = (*chain.reads, *chain.members[0].given)
    return {name: workspace[name][: workspace.time] for name in names}


CLOSE = {"log_prob": 1e-4, "entropy": 2e-5, "value": 2e-5}
"""How near two ways of computing come on any processor: the density of a bounded action is steep near its bounds."""


def check_faces(chain: Chain, workspace: Workspace) -> None:
    """`sequence` is the loop of `step`, and what acted."""
    given = chain.members[0].given
    whole = replay(chain, workspace, given=given)
    loop = replay(chain, workspace, given=given, stepwise=True)
    mask = workspace.decided
    for name, close in CLOSE.items():
        assert torch.allclose(whole[name][mask], loop[name][mask], atol=close), name
        if name in workspace:  # entropies are scores alone
            assert torch.allclose(whole[name][mask], workspace[name][mask], atol=close), name
        assert whole[name].std() > 1e-2, "what is always the same agrees with anything"
    assert torch.equal(whole["action"], workspace["action"])


def dead_parameters(world: World, shape: TurnShape) -> list[str]:
    """What has no gradient after one step from its own initialisation, as a layer whose maps all begin at 0."""
    team = AutoregressiveTeam(world.team, shape, "group", torch.Generator().manual_seed(0))
    chain, workspace = recorded(world, shape, time=20)
    inputs = inputs_of(chain, workspace)
    weights = torch.randn(20, 4, world.agents)
    for first in (True, False):
        out, _ = team.sequence(inputs, team.initial_memory(4), workspace["start"][:20])
        team.zero_grad()
        (weights * (out["log_prob"] + out["value"])).sum().backward()
        if first:
            with torch.no_grad():
                for each in team.parameters():
                    each.sub_(1e-3 * each.grad)
    return [name for name, each in team.named_parameters() if not each.grad.abs().sum() > 0]


def crowd(agents: int, shape: TurnShape) -> tuple[AutoregressiveTeam, dict[str, Tensor]]:
    """A team of many, and two steps of one environment."""
    names = [f"a_{i}" for i in range(agents)]
    team = TeamSpec.of_agents(dict.fromkeys(names, Vector(3)), dict.fromkeys(names, Discrete(2)))
    network = AutoregressiveTeam(team, replace(shape, agent_id=False), "shared", torch.Generator().manual_seed(0))
    return network, {
        "obs": torch.randn(2, 1, agents, 3),
        "agent_mask": torch.ones(2, 1, agents, dtype=torch.bool),
        "action": torch.zeros(2, 1, agents, dtype=torch.int64),
    }


def check_low_precision(shape: TurnShape) -> None:
    """Autocast changes little, and what comes out has full precision."""
    chain, workspace = recorded(WORLDS["masked"], shape)
    exact = replay(chain, workspace, given=chain.members[0].given)
    with torch.autocast("cpu", torch.bfloat16):
        rough = replay(chain, workspace, given=chain.members[0].given)
        acted, _ = chain.step(workspace.at(0, (*chain.reads, *chain.members[0].given)), chain.initial_memory(4))
    for name in ("log_prob", "value", "entropy"):
        assert rough[name].dtype == torch.float32
        assert torch.allclose(rough[name], exact[name], atol=0.5)
        assert acted[name].dtype == torch.float32


@dataclass
class Absence:
    """One step of a team of five, and the same without its second and its last."""

    team: AutoregressiveTeam
    smaller: AutoregressiveTeam
    inputs: dict[str, Tensor]
    kept: list[int]

    @classmethod
    def drawn(cls, shape: TurnShape) -> "Absence":
        shape = replace(shape, agent_id=False)
        team, smaller = made(World(agents=5), shape, "shared"), made(World(agents=3), shape, "shared")
        smaller.load_state_dict(team.state_dict())
        mask = torch.tensor([True, False, True, True, False]).expand(4, 2, 5)
        inputs = {"obs": torch.randn(4, 2, 5, 6), "agent_mask": mask, "action": torch.randint(5, (4, 2, 5))}
        return cls(team, smaller, inputs, [0, 2, 3])

    def check(self) -> None:
        """Absent agents are as if they were not in the team, to those who learn and to those who act."""
        start = torch.zeros(4, 2, dtype=torch.bool)
        out, memory = self.team.sequence(self.inputs, self.team.initial_memory(2), start)
        part = {name: value[:, :, self.kept] for name, value in self.inputs.items()}
        alone, its_memory = self.smaller.sequence(part, self.smaller.initial_memory(2), start)
        for name in ("log_prob", "value", "entropy"):
            assert torch.allclose(out[name][:, :, self.kept], alone[name], atol=1e-5), name
        for (path, one), (_, other) in zip(leaves(memory), leaves(its_memory), strict=True):
            assert torch.allclose(one, other, atol=1e-5), path
        assert (out["value"][:, :, [1, 4]] == 0).all()
        noise = torch.randn(2, 5, 5)
        drawn, _ = self.team.step({"noise": noise, **step_of(self.inputs)}, memory)
        fewer, _ = self.smaller.step({"noise": noise[:, self.kept], **step_of(part)}, its_memory)
        assert torch.equal(drawn["action"][:, self.kept], fewer["action"])


def step_of(inputs: dict[str, Tensor], t: int = 0) -> dict[str, Tensor]:
    return {name: value[t] for name, value in inputs.items() if name not in ("action", "sample")}


COMPILED = """
import torch
from martes.networks.autoregressive import AutoregressiveTeam
from martes.networks.mat import MATShape
from martes.networks.sable import SableShape
from tests.worlds import World
network = AutoregressiveTeam(World(has_masks=True).team, {shape}, "group", torch.Generator().manual_seed(0))
inputs = {
    "obs": torch.randn(2, 3, 6),
    "agent_mask": torch.ones(2, 3, dtype=torch.bool),
    "action_mask": torch.ones(2, 3, 5, dtype=torch.bool),
    "noise": torch.randn(2, 3, 5),
}
memory = network.initial_memory(2)
step = torch.compile(network.step, fullgraph=True, backend="eager")
assert torch.equal(step(inputs, memory)[0]["action"], network.step(inputs, memory)[0]["action"])
with torch.no_grad():
    assert torch.equal(step(inputs, memory)[0]["action"], network.step(inputs, memory)[0]["action"])
if network.core.turns_alike:
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        expected = network.step(inputs, memory)[0]["action"]
        network.turn = torch.compile(network.turn, fullgraph=True, dynamic=False, backend=kept)
        assert torch.equal(network.step(inputs, memory)[0]["action"], expected)
    # One for all agents, and one for the first of a team without memory, who has no state yet.
    assert 1 <= len(graphs) <= 2, len(graphs)
    del network.turn
window = {name: value.expand(5, *value.shape) for name, value in inputs.items() if name != "noise"}
window["action"] = torch.ones(5, 2, 3, dtype=torch.int64)
start = torch.zeros(5, 2, dtype=torch.bool)
sequence = torch.compile(network.sequence, fullgraph=True, backend="eager")
assert torch.equal(sequence(window, memory, start)[0]["value"], network.sequence(window, memory, start)[0]["value"])
"""


def check_compiles(shape: TurnShape) -> None:
    """Both faces are one graph each."""
    # In a process of its own: here every call is checked at run time, which a graph cannot hold.
    subprocess.run([sys.executable, "-c", COMPILED.replace("{shape}", repr(shape))], check=True)
