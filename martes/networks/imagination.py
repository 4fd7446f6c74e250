"""A learned environment: a model of what follows from an action, and acting in what it imagines."""

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from martes.data import Discrete, Fields, Memory, TeamSpec, TimeStep, Vector, Workspace
from martes.data.trees import cleared, mapped
from martes.errors import ConfigError, DataError, EnvError
from martes.maths.masks import masked_mean
from martes.networks.blocks import Body, Network, StackedLinear
from martes.networks.critics import of_the_living
from martes.networks.sharing import Slots
from martes.networks.temporal import Inputs, Outputs, TemporalModule

NEXT = "next_"
"""A model writes `next_obs` for what is seen as `obs` after the action, and so on for each observation field."""


class Dynamics(TemporalModule):
    """What a whole team sees next (`next_obs`), is paid (`reward`) and whether it goes on (`discount`), as it acts.

    One network reads all observations and actions, joined; it predicts the change of each observation, each agent's
    reward, and the log-odds that the episode goes on. `discount` is 0 or 1. Raises ConfigError for a team that sees
    anything but vectors, or sets several discrete actions at once.
    """

    writes = ("next_obs", "reward", "discount")

    def __init__(self, team: TeamSpec, network: Network, generator: torch.Generator) -> None:
        super().__init__()
        seen = team.parts.get("obs")
        if not isinstance(seen, Vector) or team.legal_actions.dim() > 2:
            raise ConfigError(f"this model is for teams that see vectors and choose one action: {dict(team.parts)}")
        self.agents, self.seen = team.size, seen.size
        self.is_discrete = team.action_kind is Discrete
        self.choices = team.legal_actions.shape[1]
        joint = team.size * (seen.size + self.choices)
        self.body = Body({"joint": Vector(joint)}, (joint,), Slots((0,)), network, generator)
        self.head = StackedLinear((self.body.size,), team.size * (seen.size + 1) + 1, generator, gain=0.01)
        self.reads = ("obs", "action", "agent_mask")

    def initial_memory(self, envs: int) -> Memory:
        """The body's memory."""
        return self.body.initial_memory(envs)

    def step(self, inputs: Inputs, memory: Memory) -> tuple[Outputs, Memory]:
        """What follows one action."""
        features, memory = self.body.step(self._joint(inputs), memory)
        return self._told(features, inputs), memory

    def sequence(self, inputs: Inputs, memory: Memory, start: Bool[Tensor, "time env"]) -> tuple[Outputs, Memory]:
        """What follows each action of a window."""
        features, memory = self.body.sequence(self._joint(inputs), memory, start)
        return self._told(features, inputs), memory

    def loss(self, window: Workspace) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Squared errors of observation and reward, and cross-entropy of going on, over what really happened.

        What followed a cut is not in the window, so there the observation is not learned from.
        """
        inputs = {name: window[name][: window.time] for name in self.reads}
        told, _ = self.sequence(inputs, window.memory, window["start"][: window.time])
        mask, next_there = window.mask, window["agent_mask"][1:]
        follows = mask & next_there & ~window["cut"].unsqueeze(-1)
        went_on = (window["discount"].amax(-1) > 0).to(told["going_on"].dtype)
        parts = {
            "observation_loss": masked_mean((told["next_obs"] - window["obs"][1:]).square().mean(-1), follows),
            "reward_loss": masked_mean((told["reward"] - window["reward"]).square(), mask),
            "end_loss": masked_mean(
                functional.binary_cross_entropy_with_logits(told["going_on"], went_on, reduction="none"), mask.any(-1)
            ),
        }
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _joint(self, inputs: Inputs) -> Inputs:
        there, action = inputs["agent_mask"], inputs["action"]
        done = functional.one_hot(action.long(), self.choices).float() if self.is_discrete else action
        joint = torch.cat((of_the_living(inputs["obs"], there), of_the_living(done, there)), -1).flatten(-2)
        return {"joint": joint.unsqueeze(-2), "agent_mask": there.any(-1, keepdim=True)}

    def _told(self, features: Float[Tensor, "slot row size"], inputs: Inputs) -> Outputs:
        lead = inputs["agent_mask"].shape[:-1]
        change, reward, going_on = (
            self.head(features).view(*lead, -1).split((self.agents * self.seen, self.agents, 1), -1)
        )
        goes_on = (going_on > 0).to(reward.dtype).expand_as(reward)
        return {
            "next_obs": inputs["obs"] + change.unflatten(-1, (self.agents, self.seen)),
            "reward": reward * inputs["agent_mask"],
            "discount": goes_on,
            "going_on": going_on.squeeze(-1),
        }


class Imagined:
    """A model as an environment: policies act in it as in any other.

    The model reads what is seen and `action`, and writes `next_<field>` for each observation field, `reward`, and
    `discount` if anything ever ends; it may have memory. Episodes open with `starts`, first observations (field ->
    `start agent ...`), drawn at random; where there are as many as environments, first each once in their order. They
    end where every discount is 0, or after `limit` steps (None: the team's limit). Raises DataError where the model
    tells less than the starts show.
    """

    def __init__(self, model: TemporalModule, team: TeamSpec, starts: Fields, envs: int, limit: int | None = None):
        self.team, self.num_envs = team, envs
        count = len(next(iter(starts.values())))
        self.starts = {"agent_mask": torch.ones(count, team.size, dtype=torch.bool), **starts}
        for name in self.starts:
            if name != "agent_mask" and NEXT + name not in model.writes:
                raise DataError(f"{model.title} does not write {NEXT + name!r}, though {name!r} is seen at the start")
        self._model = model
        self._limit = limit or team.episode_limit
        self._generator = torch.Generator()
        self._seen: dict[str, Tensor] = {}
        self._memory: Memory = ()
        self._elapsed = torch.zeros(envs, dtype=torch.int64)

    def reset(self, seed: int) -> TimeStep:
        """The first step of every environment."""
        self._generator.manual_seed(seed)
        self._memory = self._model.initial_memory(self.num_envs)
        self._seen = (
            dict(self.starts) if len(self.starts["agent_mask"]) == self.num_envs else self._opened(self.num_envs)
        )
        self._elapsed.zero_()
        return self._shown()

    def _shown(self) -> TimeStep:
        """The step that the next action is chosen from, outside of a run of steps."""
        there = self._seen["agent_mask"]
        zeros = torch.zeros(there.shape, device=there.device)
        begins = (self._elapsed == 0).to(there.device)
        return TimeStep(self._seen, begins, zeros, torch.ones_like(zeros), torch.zeros_like(begins))

    def _opened(self, count: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(self.starts["agent_mask"]), (count,), generator=self._generator)
        return {name: value[chosen.to(value.device)] for name, value in self.starts.items()}

    def step(self, action: Tensor) -> TimeStep:
        """What the model says of a joint action; where an episode ended, the next one opens."""
        if not self._seen:
            raise EnvError("step() before reset(): call reset(seed) first")
        told, self._memory = self._model({**self._seen, "action": action}, self._memory)
        seen = {name: told.get(NEXT + name, value) for name, value in self._seen.items()}
        discount = told.get("discount", torch.ones_like(told["reward"]))
        self._elapsed += 1
        cut = (discount == 0).all(-1)
        if self._limit is not None:
            cut = cut | (self._elapsed >= self._limit).to(cut.device)
        self._seen, final = seen, None
        if bool(cut.any()):
            final, self._seen = seen, self._restarted(seen, cut)
        return TimeStep(self._seen, cut, told["reward"], discount, cut, final)

    def _restarted(self, seen: dict[str, Tensor], cut: Bool[Tensor, "env"]) -> dict[str, Tensor]:
        fresh = self._opened(self.num_envs)
        self._elapsed.masked_fill_(cut.cpu(), 0)
        if self._memory != ():
            self._memory = cleared(self._memory, self._model.initial_memory(self.num_envs), cut)
        restarted = {name: cleared(value, fresh[name].to(value), cut) for name, value in seen.items()}
        return {name: value for name, value in restarted.items() if isinstance(value, Tensor)}

    def render(self, index: int = 0) -> UInt8[np.ndarray, "height width 3"]:
        """Raises EnvError: nobody has seen what a model imagines."""
        raise EnvError(f"what {self._model.title} imagines has no picture: watch the policy in the true environment")

    def close(self) -> None:
        """Forgets what was seen."""
        self._seen, self._memory = {}, ()

    def state_dict(self) -> dict[str, object]:
        """What is seen, what the model remembers, clocks and random state; the model is not in it."""
        generator = self._generator.get_state()
        return {"seen": self._seen, "memory": self._memory, "elapsed": self._elapsed.clone(), "generator": generator}

    def load_state_dict(self, state: dict[str, object]) -> TimeStep:
        """Restores `state_dict` and returns the step that the next action is chosen from.

        Raises EnvError where it is that of anything else, or of another number of environments.
        """
        seen, memory, elapsed, generator = (state.get(name) for name in ("seen", "memory", "elapsed", "generator"))
        if not isinstance(seen, dict) or not isinstance(memory, Tensor | tuple | dict):
            raise EnvError("this is not the state of imagined environments: it lacks what was seen, or remembered")
        if not (isinstance(elapsed, Tensor) and isinstance(generator, Tensor) and len(elapsed) == self.num_envs):
            raise EnvError(f"this is no state of {self.num_envs} imagined environments: make as many as were saved")
        self._seen = {name: value.to(self.starts[name].device) for name, value in seen.items()}
        self._memory = mapped(lambda leaf: leaf.to(self.starts["agent_mask"].device), memory)
        self._elapsed.copy_(elapsed)
        self._generator.set_state(generator.cpu())
        return self._shown()

    def detach(self) -> None:
        """Lets go of the past of a tape: a gradient ends here."""
        self._seen = {name: value.detach() for name, value in self._seen.items()}
        self._memory = mapped(Tensor.detach, self._memory)
