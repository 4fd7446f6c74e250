"""A policy that learns to swing up a pendulum from the gradient of what the pendulum pays, through time.

No value, no advantage, no likelihood: the environment is a function of tensors, so the return has a gradient.
"""

import sys

import torch

from martes.data import Schema
from martes.envs.batched.engine import BatchedEnv
from martes.envs.batched.pendulum import Pendulum
from martes.networks import Chain, Network, Policy
from martes.networks.tape import taped
from martes.training.evaluate import evaluate


def climb(policy, env, schema, updates, window, seed):
    """Moves the policy up the gradient of what the environment pays, so many times, each through one window."""
    optimiser = torch.optim.Adam(policy.parameters(), lr=1e-2)
    now = env.reset(seed)
    for update in range(updates):
        tape = taped(Chain(env, policy), schema, now, window)  # no generator: no noise
        loss = -tape.window["reward"].mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimiser.step()
        now = tape.last
        if (update + 1) % 50 == 0:
            print(f"update {update + 1}: a step pays {-float(loss.detach()):.2f}", flush=True)


def main(updates=200, copies=32, window=40):
    """Learns for so many updates, each from one window of every copy."""
    torch.set_num_threads(1)  # small tensors: a second thread would only wait
    env = BatchedEnv(Pendulum(steps=200), copies)
    generator = torch.Generator().manual_seed(0)
    policy = Policy(env.team, Network(hidden=(64, 64), activation="tanh"), "shared", generator)
    climb(policy, env, Schema.from_team(env.team).extended(**policy.fields()), updates, window, seed=0)
    scores = evaluate(policy, BatchedEnv(Pendulum(), 20), episodes=20, seed=1)
    print(f"an episode of 200 steps pays {float(scores.returns.mean()):.0f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
