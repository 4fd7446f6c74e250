"""Sable in a loop of your own: a plain environment, collected from, learned from, evaluated, saved.

Three agents stand before five doors, some of them locked, and open one each; a step pays 1 if no two took the same.
Nobody can tell from the doors alone which to take: each must know what those before it chose.
"""

from pathlib import Path

import numpy as np
import torch

from martes.sable import SableConfig, SableTrainer


class Doors:
    """The environment: nothing of martes is in it."""

    agents, doors, steps = 3, 5, 8

    def __init__(self, seed):
        self.chance = np.random.default_rng(seed)

    def reset(self):
        self.step_count = 0
        return self.observe()

    def observe(self):
        self.is_open = np.ones(self.doors, bool)
        locked = self.chance.permutation(self.doors)[: self.chance.integers(3)]  # none, one or two
        self.is_open[locked] = False
        return np.tile(self.is_open, (self.agents, 1)).astype(np.float32)  # [n_agents, obs_dim]

    def get_legal_actions(self):
        return np.tile(self.is_open, (self.agents, 1))  # [n_agents, action_dim], true where one may

    def step(self, actions):
        self.step_count += 1
        is_paid = len(set(actions.tolist())) == self.agents
        done = self.step_count == self.steps
        return self.observe(), np.full(self.agents, float(is_paid)), np.full(self.agents, done), {}


def collect(network, envs, obs, hstates, steps):
    """A rollout of all environments, and what the next one goes on from."""
    names = ("observations", "legal_actions", "actions", "values", "rewards", "log_probs", "dones")
    rows = {name: [] for name in names}
    before = hstates
    for _ in range(steps):
        legal = np.stack([env.get_legal_actions() for env in envs])
        actions, log_probs, values, hstates = network.get_actions(obs, hstates, legal_actions=legal)
        answers = [env.step(action) for env, action in zip(envs, actions.numpy(), strict=True)]
        seen, rewards, dones, _ = zip(*answers, strict=True)
        row = (obs, legal, actions, values, np.stack(rewards), log_probs, np.stack(dones))
        for name, value in zip(names, row, strict=True):
            rows[name].append(torch.as_tensor(value))
        obs = np.stack([env.reset() if done.all() else each for env, each, done in zip(envs, seen, dones, strict=True)])
        hstates = network.reset_hidden_states(hstates, np.stack(dones))  # a new episode remembers nothing
    rollout = {name: torch.stack(each) for name, each in rows.items()}  # [T, B, N, ...]
    return {**rollout, "hstates": before, "next_obs": obs}, obs, hstates


def main():
    """Learns, saves what was learned, and plays from the file."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small tensors: a second thread would only wait
    config = SableConfig(
        n_agents=Doors.agents,
        action_dim=Doors.doors,
        obs_dim=Doors.doors,
        embed_dim=32,
        rollout_length=16,
        lr=2e-3,
        gamma=0.5,
    )
    config.to_yaml("sable.yaml")
    trainer = SableTrainer(config, device="cpu", log_dir="logs")
    envs = [Doors(seed) for seed in range(16)]
    obs, hstates = np.stack([env.reset() for env in envs]), trainer.network.init_hidden_states(len(envs))
    for update in range(1, 16):
        rollout, obs, hstates = collect(trainer.network, envs, obs, hstates, config.rollout_length)
        metrics = trainer.train_step(rollout)
        trainer.log_metrics(metrics)
        if update % 5 == 0:
            print(f"update {update:2d}: a step pays {rollout['rewards'].mean():.2f}, entropy {metrics['entropy']:.2f}")
    trainer.save_checkpoint("sable.safetensors", metadata={"updates": update})
    trainer.close()

    again = SableTrainer(SableConfig.from_yaml("sable.yaml"))
    told = again.load_checkpoint(Path("sable.safetensors"))
    scores = again.evaluate(Doors(seed=1000), num_episodes=20)
    print(f"after {told['updates']} updates an episode pays {scores['agent_return']:.2f} of {Doors.steps}")


if __name__ == "__main__":
    main()
