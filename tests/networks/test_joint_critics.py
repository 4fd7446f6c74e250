"""Critics of joint actions against one small network an agent; replaced actions against joint actions made anew."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from martes.data import Continuous, Discrete, TeamSpec, Vector
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.networks.deterministic import ActionCodes
from martes.networks.joint_critics import CriticForm, JointCritics, first_critic
from tests.worlds import WORLDS, World, crossed

FORM = CriticForm(Network(hidden=(8, 8)), "group", 2)
SHARINGS = ["shared", "group", "agent"]


def made(team: TeamSpec, form: CriticForm = FORM) -> tuple[JointCritics, ActionCodes]:
    codes = ActionCodes(team)
    critics = JointCritics(team, form, codes, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for each in critics.parameters():
            each.add_(0.2 * torch.randn(each.shape, generator=torch.Generator().manual_seed(1)))
    return critics, codes


def seen(world: World, codes: ActionCodes, envs: int = 6) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What a team sees, does, and could have done [env ...]."""
    env = BatchedEnv(world, envs)
    inputs = env.reset(0).seen
    if world.has_deaths:
        inputs["agent_mask"] = torch.rand(envs, world.agents, generator=torch.Generator().manual_seed(5)) < 0.6
    scores = [codes.scores(torch.randn(envs, world.agents, codes.size)) for _ in range(2)]
    done, other = (codes.of_scores(each, inputs) for each in scores)
    return inputs, done, other


def slow_q(critics: JointCritics, team: TeamSpec, inputs: dict[str, Tensor], codes: Tensor) -> Tensor:
    """Q of every critic of every agent [env critic agent], each agent's own little network."""
    alive = inputs["agent_mask"].float()
    parts = [inputs["state"]] if "state" in critics.reads else []
    for agent in range(team.size if not parts else 0):
        parts.append(inputs["obs"][:, agent, : team.observation_sizes[agent]] * alive[:, agent, None])
    for agent in range(team.size):
        real = team.legal_actions.flatten(1)[agent]
        parts.append(codes[:, agent][:, real] * alive[:, agent, None])
    x = torch.cat(parts, -1)
    slots, rows = critics.slots.count // critics.count, []
    of_agent = critics.slot.tolist()[: team.size]
    for critic in range(critics.count):
        for agent, slot in enumerate(of_agent):
            at, h = critic * slots + slot, x
            members = [each for each, other in enumerate(of_agent) if other == slot]
            for depth, layer in enumerate(critics.body.layers):
                h = functional.linear(h, layer.weight[at], layer.bias[at])  # pyright: ignore
                if depth == 0 and critics.body.identity is not None:
                    h = h + critics.body.identity[at, members.index(agent)]
                h = h.relu()
            rows.append(functional.linear(h, critics.head.weight[at], critics.head.bias[at])[:, 0])
    return torch.stack(rows, -1).unflatten(-1, (critics.count, team.size))


VECTORS = [name for name, world in WORLDS.items() if not world.has_image]


@pytest.mark.parametrize(("name", "sharing", "sees"), crossed(VECTORS, SHARINGS, ["state", "observations"]))
def test_all_in_one_pass_are_one_network_an_agent(name: str, sharing: str, sees: str) -> None:
    team = WORLDS[name].team
    critics, codes = made(team, replace(FORM, sharing=sharing, sees=sees))  # pyright: ignore
    inputs, done, _ = seen(WORLDS[name], codes)
    assert torch.allclose(critics(critics.joint(inputs, done)), slow_q(critics, team, inputs, done), atol=1e-5)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_written_over_that_somebody_holds(is_replaced: bool) -> None:
    """Twice the same of the same joint actions, with the gradient of separate networks, and no copy of a gradient."""
    world, form = World(agents=3), CriticForm(Network(hidden=(16, 16)))  # of narrower ones torch makes views
    critics, codes = made(world.team, form)
    inputs, done, other = seen(world, codes)
    joint, change = critics.joint(inputs, done), other - done
    firsts: list[Tensor] = []
    critics.body.layers[0].register_forward_hook(lambda _module, _args, first: firsts.append(first))
    kept = [each.clone() for each in joint.values()]
    one, two = (critics.replaced(joint, change) if is_replaced else critics(joint) for _ in range(2))
    assert torch.equal(one, two)
    assert all(torch.equal(each, before) for each, before in zip(joint.values(), kept, strict=True))
    assert all(each._version == 0 for each in firsts)
    nodes, known = [one.grad_fn], set[object]()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in known:
            known.add(node)
            nodes += [before for before, _ in node.next_functions]
    assert not [node for node in known if "CopySlices" in node.name()]  # pyright: ignore
    if not is_replaced:
        found = torch.autograd.grad(one.square().sum(), [*critics.parameters()])
        slow = torch.autograd.grad(slow_q(critics, world.team, inputs, done).square().sum(), [*critics.parameters()])
        for each, expected in zip(found, slow, strict=True):
            torch.testing.assert_close(each, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("name", ["unequal", "dying", "multi-discrete", "continuous", "image"])
def test_replacing_each_ones_own_action_is_making_so_many_joint_actions(name: str, sharing: str) -> None:
    team, form = WORLDS[name].team, replace(FORM, sharing=sharing)  # pyright: ignore
    critics, codes = made(team, form)
    judge = first_critic(critics, team, form, codes)
    inputs, done, other = seen(WORLDS[name], codes)
    change = ((other - done) * inputs["agent_mask"].unsqueeze(-1)).requires_grad_()
    q = judge.replaced(critics.joint(inputs, done), change)
    for agent in range(team.size):
        joint = done.clone()
        joint[:, agent] = other[:, agent]
        assert torch.allclose(q[:, agent], critics(critics.joint(inputs, joint))[:, 0, agent], atol=1e-5)
        (moved,) = torch.autograd.grad(q[:, agent].sum(), change, retain_graph=True)
        moved[:, agent] = 0
        assert (moved == 0).all(), "an agent's critic knows nothing of what others would do now"


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_critic_lies_in_the_memory_of_all(count: int) -> None:
    team, form = WORLDS["image"].team, replace(FORM, count=count, network=Network(hidden=(8,), normalise=True))
    critics, codes = made(team, form)
    judge = first_critic(critics, team, form, codes)
    inputs, done, _ = seen(WORLDS["image"], codes)
    with torch.no_grad():
        for each in critics.parameters():
            each.mul_(1.1)
    critics.observe({**inputs}, torch.ones(6, dtype=torch.bool))
    joint = critics.joint(inputs, done)
    assert torch.equal(judge.joint(inputs, done)["joint"], joint["joint"])
    assert torch.allclose(judge(joint)[:, 0], critics(joint)[:, 0], atol=1e-6)
    assert not any(each.requires_grad for each in judge.parameters())
    assert all(each.requires_grad for each in critics.parameters())
    critics.load_state_dict({name: value + 1 for name, value in critics.state_dict().items()})
    assert torch.allclose(judge(joint)[:, 0], critics(joint)[:, 0], rtol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("count", [1, 2])
def test_parameters_are_counted_by_the_formula(sharing: str, count: int) -> None:
    """Speaker and listener: 14 seen and 8 done numbers, no padding among them."""
    names = ["speaker_0", "listener_0", "listener_1"]
    sees = {"speaker": Vector(3), "listener": Vector(11)}
    does = {"speaker": Continuous((0.0,) * 3, (1.0,) * 3), "listener": Continuous((0.0,) * 5, (1.0,) * 5)}
    kinds = {name: name.split("_")[0] for name in names}
    team = TeamSpec.of_agents(
        {name: sees[kind] for name, kind in kinds.items()}, {name: does[kind] for name, kind in kinds.items()}
    )
    critics, _ = made(team, CriticForm(Network(hidden=(32, 16)), sharing, count))  # pyright: ignore
    slots, width = {"shared": (1, 3), "group": (2, 2), "agent": (3, 1)}[sharing]
    fan_in = 3 + 11 + 11 + 3 + 5 + 5
    each = (fan_in + 1) * 32 + 33 * 16 + 17 + (32 * width if width > 1 else 0)
    assert sum(parameter.numel() for parameter in critics.parameters()) == count * slots * each


def test_what_stands_where_nobody_is_says_nothing() -> None:
    world = WORLDS["dying"]
    critics, codes = made(world.team, replace(FORM, sees="observations"))
    inputs, done, other = seen(world, codes)
    absent = ~inputs["agent_mask"].unsqueeze(-1)
    assert absent.any()
    moved = {**inputs, "obs": inputs["obs"] + 3 * absent}
    there = critics(critics.joint(inputs, done))
    assert torch.equal(there, critics(critics.joint(moved, torch.where(absent, other, done))))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_kernels_do_not_multiply_with_agents(sharing: str) -> None:
    def kernels(agents: int) -> int:
        names = [f"{'ab'[i % 2]}_{i}" for i in range(agents)]
        team = TeamSpec.of_agents(dict.fromkeys(names, Vector(4)), dict.fromkeys(names, Discrete(3)))
        form = replace(FORM, sharing=sharing)  # pyright: ignore
        critics, codes = made(team, form)
        judge = first_critic(critics, team, form, codes)
        inputs = {"obs": torch.randn(2, agents, 4), "agent_mask": torch.ones(2, agents, dtype=torch.bool)}
        done = codes.of_actions(torch.zeros(2, agents, dtype=torch.int64))
        with profile(activities=[ProfilerActivity.CPU]) as recorder:
            joint = critics.joint(inputs, done)
            critics(joint).sum().backward()
            judge.replaced(joint, done.clone().requires_grad_()).sum().backward()
        return sum(event.count for event in recorder.key_averages())

    assert kernels(16) <= kernels(4)
