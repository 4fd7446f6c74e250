"""A policy that learns in imagination: a model is fitted to what was recorded, and the policy never acts but in it.

First play at random in the true pendulum; then a model of it; then the policy, by the gradient of what it is paid in
what the model imagines; last, test episodes in the true pendulum.
"""

import sys

import torch
from differentiable_pendulum import climb  # beside this script

from martes.data import Schema, Workspace
from martes.envs.batched.engine import BatchedEnv
from martes.envs.batched.pendulum import Pendulum
from martes.networks import Chain, Network, Policy, act
from martes.networks.imagination import Dynamics, Imagined
from martes.training.evaluate import evaluate


def recorded(env, policy, steps, generator):
    """A workspace of so many steps of play."""
    schema = Schema.from_team(env.team).extended(**policy.fields())
    workspace = Workspace(schema, time=steps, envs=env.num_envs)
    first = env.reset(0)
    workspace.write(0, {**first.seen, "start": first.start})
    act(Chain(env, policy), workspace, 0, steps, generator=generator)
    return workspace


def fitted(env, workspace, passes, generator):
    """A model of what a workspace holds."""
    model = Dynamics(env.team, Network(hidden=(128, 128), activation="silu"), generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for number in range(passes):
        for batch in workspace.minibatches(4, by="row", generator=generator):
            loss, _ = model.loss(batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if (number + 1) % 50 == 0:
            print(f"pass {number + 1}: the model errs by {float(loss.detach()):.4f}", flush=True)
    return model.frozen()


def main(passes=150, updates=200, copies=32):
    """Fits a model in so many passes over the record, then a policy in so many updates."""
    torch.set_num_threads(1)  # small tensors: a second thread would only wait
    generator = torch.Generator().manual_seed(0)
    env, test = BatchedEnv(Pendulum(), copies), BatchedEnv(Pendulum(), 20)
    policy = Policy(env.team, Network(hidden=(64, 64), activation="tanh"), "shared", generator)
    workspace = recorded(env, policy, 400, generator)
    model = fitted(env, workspace, passes, generator)

    starts = {"obs": workspace["obs"][:-1].flatten(0, 1)}  # imagine on from anything that was seen
    imagined = Imagined(model, env.team, starts, copies, limit=40)
    climb(policy, imagined, workspace.schema, updates, window=40, seed=1)
    scores = evaluate(policy, test, episodes=20, seed=1)
    print(f"a true episode of 200 steps pays {float(scores.returns.mean()):.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
