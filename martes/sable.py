"""Sable for your own loop, in plain tensors: a config, a network that acts and is scored, a trainer.

It stands on the library's own network (`AutoregressiveTeam`) and learner (`PPOLearner`), and only speaks differently:
`[B, N, ...]` to act, `[B, T*N, ...]` to be scored, `[T, B, N, ...]` to be recorded. How to: docs/sable-own-loop.md.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import numpy as np
import torch
import yaml
from jaxtyping import Float
from torch import Tensor, nn

from martes.algorithms.autoregressive import Sable
from martes.algorithms.learner import Metrics
from martes.algorithms.ppo import PPOLearner
from martes.conversion import branches, changed, converted
from martes.data import Continuous, Discrete, Memory, Schema, TeamSpec, Vector, Workspace
from martes.data.arguments import EDGE, ArgumentError, Arguments, count, number, placing, plain
from martes.data.arguments import refuse as refuse_where
from martes.data.limits import COUNT, NATURAL, POSITIVE, SHARE, refuse, refuse_beyond
from martes.data.trees import cleared, mapped
from martes.envs.adapters.plain import Plain
from martes.errors import CheckpointError, ConfigError
from martes.networks import AutoregressiveTeam
from martes.networks.sable import SableShape
from martes.training.played import Play, played
from martes.training.recorded import recorded
from martes.training.run import write_text
from martes.training.single_file import load_file, save_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["ArgumentError", "SableConfig", "SableNetwork", "SableTrainer"]

FORMAT = "martes.sable"
NETWORK = (
    "n_agents", "action_dim", "obs_dim", "n_block", "n_head", "embed_dim",
    "decay_scaling_factor", "action_space_type", "memory",
)  # fmt: skip
"""What the network is: a checkpoint of another cannot be loaded."""
ACTION_SPACES = ("discrete", "continuous")
Array = Tensor | np.ndarray
Place = str | Path


@contextmanager
def _refused_as_arguments(place: str = "") -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ArgumentError(f"{place}{error}") from error


@dataclass(frozen=True)
class SableConfig:
    """All that decides a network and how it learns. Raises ArgumentError, a ValueError, for what cannot be."""

    n_agents: int
    """Agents of the team, who act in the order of their axis."""
    action_dim: int
    """Actions that each may choose from; or (continuous) real numbers in [-1, 1] that each gives."""
    obs_dim: int
    """Numbers that each observes."""
    n_block: int = 1
    """Blocks of the encoder, and of the decoder."""
    n_head: int = 1
    """Heads of each retention; they share the width."""
    embed_dim: int = 64
    """Width of the tokens."""
    chunk_size: int = 64
    """Tokens (agents times steps) evaluated at once when learning: speed and memory, never a result."""
    decay_scaling_factor: float = 0.8
    """Scale of the decays: at 1 the memory reaches over 32 to 512 steps, at 0.8 over about 5, at 0 over none."""
    lr: float = 5e-4
    """Step size of Adam."""
    gamma: float = 0.99
    """Discount of the return per step."""
    gae_lambda: float = 0.95
    """Weight of long returns in the advantage: 0 is one-step, 1 is Monte Carlo."""
    clip_eps: float = 0.2
    """Half-width of the trust region on the probability ratio, and (in deviations of the return) on the value."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Longest gradient."""
    rollout_length: int = 128
    """Steps of each environment between two updates."""
    ppo_epochs: int = 4
    """Passes over a rollout."""
    num_minibatches: int = 2
    """Parts of each pass, a gradient step each. With memory a part holds whole environments: have at least as many."""
    action_space_type: str = "discrete"
    """What an action is: `discrete` or `continuous`."""
    memory: bool = True
    """Remember earlier steps (rec-Sable)? Without it each step stands alone (ff-Sable)."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        with _refused_as_arguments():
            for name, kind in hints.items():
                object.__setattr__(self, name, converted(kind, plain(getattr(self, name)), name))
            refuse_beyond(self, COUNT, *(name for name, kind in hints.items() if kind is int), path="")
            refuse_beyond(self, SHARE, "decay_scaling_factor", "gamma", "gae_lambda", path="")
            refuse_beyond(self, POSITIVE, "lr", "clip_eps", "max_grad_norm", path="")
            refuse_beyond(self, NATURAL, "ent_coef", "vf_coef", path="")
            is_unknown = self.action_space_type not in ACTION_SPACES
            refuse("action_space_type", self.action_space_type, is_unknown, " or ".join(ACTION_SPACES))
            is_uneven, cure = self.embed_dim % self.n_head > 0, f"a multiple of n_head, which is {self.n_head}"
            refuse("embed_dim", self.embed_dim, is_uneven, cure)

    @property
    def is_continuous(self) -> bool:
        """Are actions real numbers?"""
        return self.action_space_type == "continuous"

    @property
    def team(self) -> TeamSpec:
        """The facts of the task, as the library knows them."""
        names = [f"agent_{index}" for index in range(self.n_agents)]
        bound = (1.0,) * self.action_dim
        action = Continuous(tuple(-each for each in bound), bound) if self.is_continuous else Discrete(self.action_dim)
        sees, does = dict.fromkeys(names, Vector(self.obs_dim)), dict.fromkeys(names, action)
        return TeamSpec.of_agents(sees, does, masks_actions=not self.is_continuous)

    @property
    def algorithm(self) -> Sable:
        """The same hyperparameters, as the library names them."""
        network = SableShape(
            size=self.embed_dim,
            heads=self.n_head,
            layers=self.n_block,
            memory=self.memory,
            decay_scale=self.decay_scaling_factor,
            chunk_size=self.chunk_size,
        )
        return Sable(
            network=network,
            rollout=self.rollout_length,
            epochs=self.ppo_epochs,
            minibatches=self.num_minibatches,
            lr=self.lr,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            clip=self.clip_eps,
            value_clip=self.clip_eps,
            entropy=self.ent_coef,
            value_weight=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
        )

    def to_yaml(self, path: Place) -> None:
        """Writes every value to a file."""
        write_text(Path(path), yaml.safe_dump(branches(self), sort_keys=False))

    @classmethod
    def from_yaml(cls, path: Place) -> "SableConfig":
        """The config of a file; what it leaves out is as above. Raises ArgumentError, naming file and key."""
        try:
            tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise ArgumentError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(tree, Mapping):
            raise ArgumentError(f"{path} holds no configuration: it is {type(tree).__name__}, not keys and values")
        with _refused_as_arguments(f"{path}: "):
            config = changed(cls(1, 1, 1), tree, "config")
            if absent := [name for name in ("n_agents", "action_dim", "obs_dim") if name not in tree]:
                raise ConfigError(f"{', '.join(absent)} must be given")
        return config


# ------------------------------------------------------------------------------------------------------------ network
class SableNetwork(nn.Module):
    """Policy and values of a team that acts in turn. What it is given may be tensors on any device, or NumPy arrays.

    Every method raises ArgumentError, a ValueError that names the argument, for shapes and values that cannot be.
    Weights and draws come from torch's own stream of chance: `torch.manual_seed` repeats them.
    """

    def __init__(self, config: SableConfig) -> None:
        super().__init__()
        if not isinstance(config, SableConfig):
            raise ArgumentError(f"config is {config!r}: it must be a SableConfig")
        self.config = config
        self.team = config.team
        self.policy = AutoregressiveTeam(self.team, config.algorithm.network, "shared", seeded("cpu"))

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.policy.parameters()).device

    def arguments(self, **known: int) -> Arguments:
        """What reads the arguments of one call; `known` are sizes of axes."""
        return Arguments(self.team, self.device, **known)

    def init_hidden_states(self, batch_size: int, device: torch.device | str | None = None) -> Memory:
        """What is remembered when episodes open: tensors `[B, ...]`, the steps so far among them; () without memory."""
        fresh = self.policy.initial_memory(count("batch_size", batch_size))
        with placing(device):
            return fresh if device is None else mapped(lambda leaf: leaf.to(device), fresh)

    def reset_hidden_states(self, hstates: Memory, dones: Array) -> Memory:
        """The states, as at first where an episode ended: `dones` [B], or [B, N], where all agents are done."""
        read = self.arguments()
        ended = read.team_flags("dones", dones, "batch").all(1)
        fresh = self.policy.initial_memory(len(ended))
        return cleared(read.memory(hstates, fresh), fresh, ended)

    @torch.no_grad()
    def get_actions(
        self, obs: Array, hstates: Memory, deterministic: bool = False, legal_actions: Array | None = None
    ) -> tuple[Tensor, Float[Tensor, "batch agent"], Float[Tensor, "batch agent"], Memory]:
        """Actions [B, N] or [B, N, A], their log-probabilities, values, and the states after the step; obs [B, N, O].

        Each agent knows what those before it chose. A continuous action is tanh(u) within ±(1 − 1e-6), and it is this
        number that is scored. Deterministic: the most probable actions (continuous: the medians).
        """
        read = self.arguments()
        inputs = _seen(read.numbers("obs", obs, "batch n_agents obs_dim"))
        if legal_actions is not None:
            inputs["action_mask"] = read.legal(legal_actions, "batch n_agents")
        batch = read.sizes["batch"]
        memory = read.memory(hstates, self.policy.initial_memory(batch))
        noise = {} if deterministic else self.policy.noise(batch, seeded(self.device))
        outputs, after = self.policy.step(inputs | noise, memory)
        actions = outputs["action"]
        if self.config.is_continuous:  # scored as `forward` will score it: from this number, which is all that it has
            actions = actions.clamp(-EDGE, EDGE)
            window = {name: each.unsqueeze(0) for name, each in (inputs | {"sample": actions.atanh()}).items()}
            scored, after = self.policy.sequence(window, memory, window["agent_mask"].new_zeros(1, batch))
            outputs = {name: each.squeeze(0) for name, each in scored.items()}
        return actions, outputs["log_prob"], outputs["value"], after

    def forward(
        self,
        obs: Array,
        actions: Array,
        hstates: Memory,
        dones: Array | None = None,
        legal_actions: Array | None = None,
    ) -> tuple[Float[Tensor, "batch token"], Float[Tensor, "batch token"], Float[Tensor, "batch token"]]:
        """Values, log-probabilities of the actions and entropies, each [B, T*N], with gradient; obs [B, T*N, O].

        The agents of a step stand side by side, step after step. `hstates` are those before the first step. `dones`
        [B, T*N] marks the observations that open an episode, which remembers nothing before it.
        """
        read, agents, axes = self.arguments(), self.config.n_agents, "batch time*n_agents"
        seen = read.numbers("obs", obs, f"{axes} obs_dim")
        if seen.shape[1] % agents:
            raise ArgumentError(f"obs has {seen.shape[1]} rows each: {agents} agents need a multiple of {agents}")
        legal = None if legal_actions is None else read.legal(legal_actions, axes)
        choice = self.policy.choices.choice
        inputs = _seen(seen) | {choice: read.choice(actions, axes, legal)[choice]}
        if legal is not None:
            inputs["action_mask"] = legal
        opens = torch.zeros_like(inputs["agent_mask"]) if dones is None else read.flags("dones", dones, axes)
        opens = opens.unflatten(1, (-1, agents))
        refuse_where("dones", opens.any(2) != opens.all(2), opens.any(2), "the same for all agents of a step")
        memory = read.memory(hstates, self.policy.initial_memory(len(seen)))
        window = {name: each.unflatten(1, (-1, agents)).transpose(0, 1) for name, each in inputs.items()}
        outputs, _ = self.policy.sequence(window, memory, opens[:, :, 0].T)
        value, log_prob, entropy = (
            outputs[name].transpose(0, 1).flatten(1) for name in ("value", "log_prob", "entropy")
        )
        return value, log_prob, entropy


def _seen(obs: Tensor) -> dict[str, Tensor]:
    return {"obs": obs, "agent_mask": torch.ones_like(obs[..., 0], dtype=torch.bool)}


def seeded(device: torch.device | str) -> torch.Generator:
    """A generator on any device, at a seed that is drawn from torch's own stream of chance."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), device="cpu")))


# ------------------------------------------------------------------------------------------------------------ trainer
class SableTrainer:
    """A network and what it learns with, for rollouts `[T, B, N, ...]` that you record: see `train_step`."""

    def __init__(self, config: SableConfig, device: torch.device | str = "cpu", log_dir: Place = "runs/sable") -> None:
        with placing(device):
            generator = seeded(device)
        self.config = config
        self.network = SableNetwork(config).to(device)
        self.learner = PPOLearner(config.algorithm, self.network.policy, generator, self._objective)
        self._schema = Schema.from_team(self.network.team).extended(**self.learner.fields)
        self._log_dir = Path(log_dir)
        self._writer: SummaryWriter | None = None

    def ppo_loss(self, batch: Workspace) -> tuple[Tensor, Metrics]:
        """The loss of a minibatch and what to watch: `PPOLearner.loss`. Override it to learn from something else, too.

        `batch["obs"]`, `["action"]`, `["log_prob"]`, `["value"]`, `["advantage"]`, `["target"]`: `time env agent ...`.
        """
        return self.learner.loss(batch)

    def _objective(self, part: Workspace, whole: Workspace) -> tuple[Tensor, Metrics]:
        match self.ppo_loss(part):
            case (Tensor() as loss, Mapping() as metrics) if loss.ndim == 0 and loss.requires_grad:
                watched = {name: number(f"{name} of ppo_loss", metric) for name, metric in metrics.items()}
                return loss, watched | {"loss": loss.detach()}
        raise ArgumentError("ppo_loss must return the loss, a scalar with gradient, and a dict of what to watch")

    def train_step(self, rollout_data: Mapping[str, object]) -> dict[str, float]:
        """Learns from one rollout: the mean of each metric over the gradient steps.

        `observations`, `actions`, `values`, `rewards`, `log_probs`, `dones` (this step ended the episode) and, if there
        are any, `legal_actions` are [T, B, N, ...], `next_obs` [B, N, O] follows the last step. Optional: `hstates`
        before row 0 (none given: as when an episode opens); `truncated` [T, B, N] or [T, B], where time ended it;
        `final_obs` [T, B, N, O], what was really seen last, read where time ended an episode. From there the value is
        the encoder's, with the memory from before the reset; without `final_obs`, that of the step before stands in.
        """
        read = self.network.arguments(rollout_length=self.config.rollout_length)
        window = recorded(self.network.policy, self._schema, read, rollout_data)
        parts = self.config.num_minibatches
        if self.config.memory and window.envs < parts:
            raise ArgumentError(
                f"num_minibatches is {parts}, this rollout has {window.envs} environments, which are not cut where "
                f"there is memory: record at least {parts}, or set num_minibatches={window.envs}"
            )
        return {name: float(metric) for name, metric in self.learner.update(window).items()}

    def evaluate(self, env: Plain, num_episodes: int, deterministic: bool = True) -> dict[str, float]:
        """Mean undiscounted `return` (summed over the agents), `agent_return` and `length` of test episodes.

        `env` has `reset() -> [n_agents, obs_dim]`, `step(actions) -> (next_obs, rewards, dones, info)`, and perhaps
        `get_legal_actions() -> [n_agents, action_dim]`. Raises EnvError where it lacks one, or answers otherwise.
        """
        episodes = count("num_episodes", num_episodes)
        return played(env, self.config.n_agents, episodes, lambda: self._player(deterministic))

    def _player(self, deterministic: bool) -> Play:
        """Who plays one episode and remembers it."""
        hstates = self.network.init_hidden_states(1)

        def play(obs: np.ndarray, legal: np.ndarray | None) -> np.ndarray:
            nonlocal hstates
            legal_actions = None if legal is None else legal[None]
            actions, _, _, hstates = self.network.get_actions(obs[None], hstates, deterministic, legal_actions)
            return actions[0].cpu().numpy()

        return play

    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Writes numbers to TensorBoard, at `step` or at the environment steps so far.

        What the folder holds of the first logged step and later counts no more: a run that goes on logs it again.
        """
        at = self.learner.env_steps if step is None else step
        numbers = {str(name): float(number(f"{name} of metrics", each)) for name, each in metrics.items()}
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            self._writer = SummaryWriter(str(self._log_dir), purge_step=at)
        for name, each in numbers.items():
            self._writer.add_scalar(name, each, at)
        self._writer.flush()

    def save_checkpoint(self, path: Place, metadata: Mapping[str, object] | None = None) -> None:
        """Writes weights, optimiser, steps and random state to one safetensors file; an old one stays until it is done.

        Raises CheckpointError where it cannot be written, or `metadata` holds more than tensors, numbers and text.
        """
        if not isinstance(metadata, Mapping | None):
            raise ArgumentError(f"metadata is {metadata!r}: it must be a dict")
        told = {"config": branches(self.config), "metadata": plain(metadata or {})}
        save_file(Path(path), FORMAT, {**told, "learner": self.learner.state_dict()})

    def load_checkpoint(self, path: Place) -> dict[str, object]:
        """Goes to where `save_checkpoint` was called: the metadata it was given.

        Raises CheckpointError where the file is missing, damaged, or of another network.
        """
        match load_file(Path(path), FORMAT):
            case {"config": dict() as saved, "learner": dict() as learner, "metadata": dict() as metadata}:
                others = [f"{key}={saved.get(key)}" for key in NETWORK if saved.get(key) != getattr(self.config, key)]
                if others:
                    raise CheckpointError(f"{path} is of another network: make the trainer with {', '.join(others)}")
                self.learner.load_state_dict(learner)
                return metadata
        raise CheckpointError(f"{path} holds no learner: save it by `save_checkpoint`")

    def close(self) -> None:
        """Closes the log; the next `log_metrics` opens it again."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
