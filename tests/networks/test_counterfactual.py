"""The counterfactual critic sees what the paper lists and never an agent's own action; what is left at a cut."""

from itertools import product

import pytest
import torch
from torch import Tensor

from martes.algorithms.coma import COMA, COMALearner
from martes.data import Workspace
from martes.data.trees import leaves
from martes.envs.batched.engine import BatchedEnv
from martes.networks import Network
from martes.training.collect import Collector
from tests.algorithms.coma_runs import GRU, NETWORKS, collected, collecting
from tests.worlds import WORLDS, World


@pytest.mark.parametrize("sharing", ["shared", "group", "agent"])
def test_what_an_agent_does_moves_all_values_but_its_own(sharing: str) -> None:
    learner, window = collected(WORLDS["unequal"], 2, sharing=sharing)
    inputs = learner._inputs(window)
    before = learner.critic(inputs)
    for agent in range(5):
        action = inputs["action"].clone()
        action[..., agent] = (action[..., agent] + 1) % 3
        after = learner.critic({**inputs, "action": action})
        assert torch.equal(after[..., agent, :], before[..., agent, :])
        for other in set(range(5)) - {agent}:
            assert not torch.isclose(after[..., other, :], before[..., other, :], rtol=0, atol=1e-7).all(-1).any()


@pytest.mark.parametrize("name", ["state", "obs", "last_action"])
def test_the_critic_sees(name: str) -> None:
    learner, window = collected(WORLDS["masked"])
    inputs = learner._inputs(window)
    other = inputs[name] + 1 if name != "last_action" else (inputs[name] + 2) % 3
    assert not torch.isclose(learner.critic(inputs), learner.critic({**inputs, name: other}), rtol=0).any()


def test_one_pass_is_agent_by_agent() -> None:
    """The values of each agent alone, from the inputs that the paper lists, put together by hand."""
    learner, window = collected(WORLDS["masked"], network=Network(hidden=(16,)), normalise_value=False)
    critic, inputs = learner.critic, learner._inputs(window)
    layer, identity, head = critic.body.layers[0], critic.body.identity, critic.head.linear
    q = critic(inputs)
    for t, env, agent in product(range(8), range(6), range(3)):
        one_hot = torch.eye(critic.actions)
        last = [int(a) for a in inputs["last_action"][t, env]]
        done = [one_hot[a] if a >= 0 else torch.zeros(critic.actions) for a in last]
        others = [one_hot[int(a)] * (i != agent) for i, a in enumerate(inputs["action"][t, env])]
        seen = torch.cat([inputs["state"][t, env], *done, *others, inputs["obs"][t, env, agent]])
        hidden = (layer.weight[0] @ seen + layer.bias[0] + identity[0, agent]).relu()
        assert torch.allclose(head.weight[0] @ hidden + head.bias[0], q[t, env, agent], atol=1e-5)


def test_the_absent_move_nobody() -> None:
    learner, window = collected(WORLDS["dying"], 2)
    inputs = learner._inputs(window)
    absent = ~inputs["agent_mask"]
    assert absent.any()
    other = {**inputs, "action": inputs["action"].clone(), "obs": inputs["obs"].clone()}
    other["action"][absent] = (other["action"][absent] + 1) % 3
    other["obs"][absent] = 1e3
    assert torch.equal(learner.critic(inputs), learner.critic(other))


def test_last_actions_are_those_before_and_begin_anew() -> None:
    _, window, collector = collecting(WORLDS["dying"], COMA(reward="mean", network=GRU, rollout=12))
    for _ in range(2):
        action, last, alive, start = (
            window["action"].clone(),
            window["last_action"],
            window["agent_mask"],
            window["start"],
        )
        expected = torch.cat((torch.full_like(action[:1], -1), action[:-1].masked_fill(~alive[:11], -1)))
        expected = expected.masked_fill(start[:12, :, None], -1)
        assert torch.equal(last[1:], expected[1:])
        assert torch.equal(last[0], torch.where(start[0, :, None], -1, last[0]))
        assert (last == -1).any() and (last >= 0).any()
        before = action[-1].masked_fill(~alive[11], -1)
        window = collector.collect()
        assert torch.equal(window["last_action"][0], before.masked_fill(window["start"][0, :, None], -1))


def test_the_record_is_the_loop_of_steps() -> None:
    learner, window = collected(WORLDS["dying"], 2, network=GRU, rollout=12)
    inputs = {name: window[name][:12] for name in (*learner.policy.reads, "action")}
    outputs, memory = learner.policy.sequence(inputs, window.memory, window["start"][:12])
    assert torch.equal(outputs["last_action"], window["last_action"])
    mask = window.mask
    assert torch.allclose(outputs["log_prob"][mask], window["log_prob"][mask], atol=1e-5)
    assert all(leaf.grad_fn is None for _, leaf in leaves(window.memory))
    assert len(list(leaves(memory))) == 2


def values_of_any_choice(learner: COMALearner, inputs: dict[str, Tensor]) -> Tensor:
    """Q' of every joint action [joint env agent]."""
    every = []
    for joint in product(range(5), repeat=3):
        action = torch.tensor(joint).expand(inputs["obs"].shape[0], 3)
        with torch.no_grad():
            q = learner.policy.target({**inputs, "action": action})
        every.append(q.gather(-1, action[..., None])[..., 0])
    return torch.stack(every)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_time_limit_leaves_the_value_of_a_draw_at_the_real_last_observation(network: str) -> None:
    world = World(has_state=True, ends=0.0, limit=4)
    env = BatchedEnv(world, 6)
    learner = COMA(network=NETWORKS[network], rollout=6).learner(env.team, torch.Generator().manual_seed(0))
    learner.policy.target.head.linear.weight.data.mul_(100)  # every choice is worth something else
    collector = Collector(env, learner, torch.Generator().manual_seed(1))
    collector.start(2)
    window = collector.collect()
    assert window["cut"].any(1).nonzero().tolist() == [[3]] and (window["discount"] == 1).all()
    twin = BatchedEnv(world, 6)
    twin.reset(2)
    final = [twin.step(window["action"][t]).final for t in range(4)][3]
    assert final is not None
    seen = {**final, "last_action": window["action"][3]}
    memory = (learner.actor.sequence(window_inputs(learner, window, 4), window.memory[0], window["start"][:4])[1], None)
    drawn = values_of_any_choice(learner, seen) - window["next_value"][3]
    assert (drawn.abs().amax(-1).amin(0) < 1e-5).all(), "no joint action has this value"
    greedy = learner.policy.value(seen, (memory[0], window["action"][3]))
    assert not torch.isclose(greedy, window["next_value"][3], atol=1e-5).all(-1).all(), "it is that of a draw"
    reset = {name: window[name][4] for name in learner.policy.reads} | {"last_action": torch.full((6, 3), -1)}
    wrong = values_of_any_choice(learner, reset) - window["next_value"][3]
    assert (wrong.abs().amax(-1).amin(0) > 1e-3).any()
    seam = {name: window[name][6] for name in learner.policy.reads} | {"last_action": window["action"][5]}
    assert ((values_of_any_choice(learner, seam) - window["next_value"][5]).abs().amax(-1).amin(0) < 1e-5).all()


def window_inputs(learner: COMALearner, window: Workspace, steps: int) -> dict[str, Tensor]:
    return {name: window[name][:steps] for name in (*learner.actor.reads, "action")}
