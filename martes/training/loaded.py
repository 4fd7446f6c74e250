"""A trained policy in anybody's loop: observations in as an environment gives them, actions out in kind."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.data import Discrete, Image, Memory, Observation, Schema, TeamSpec, Vector
from martes.data.trees import cleared
from martes.errors import DataError, nearest
from martes.networks import TemporalModule
from martes.networks.temporal import EARNED

Actions = Tensor | np.ndarray | dict[str, Tensor] | dict[str, np.ndarray | np.generic]
"""One number an agent is a NumPy scalar by name: the plain integer that environments expect."""


class LoadedPolicy:
    """A policy that acts, one call a step; what it remembers goes from call to call until `reset`.

    It takes the observation of one environment, or of many at once, in one of three forms: an array [(env) agent ...];
    a dict of such arrays by field (`obs/<part>`), where observations have several parts; a dict by agent name, as
    PettingZoo gives, of unequal widths where the team is unequal. NumPy in, NumPy out; tensors in, tensors out.
    """

    def __init__(self, policy: TemporalModule, team: TeamSpec, seed: int = 0) -> None:
        self.team = team
        self._actor = policy.part_for("action")
        self._seed = seed
        self.to("cpu")

    def to(self, device: torch.device | str) -> "LoadedPolicy":
        """This policy on `device`, as if it had not acted yet."""
        self._device = torch.device(device)
        self._actor.to(self._device)
        self._generator = torch.Generator(self._device).manual_seed(self._seed)
        self.reset()
        return self

    def reset(self) -> None:
        """Forgets what was seen: the next observation opens an episode."""
        self._memory: Memory | None = None
        self._envs = 0

    @torch.no_grad()
    def act(
        self,
        obs: object,
        *,
        action_mask: object = None,
        agent_mask: object = None,
        start: object = None,
        earned: object = None,
        greedy: bool = True,
    ) -> Actions:
        """The actions [(env) agent ...], or by agent name if `obs` is.

        `action_mask` (true: legal) comes in the form of `obs`. `agent_mask` [(env) agent] tells who is there; by name
        it is those who are in the dict. `start` [(env)] tells where an episode opens, so that memory is cleared.
        `earned` [(env) agent] is what each was paid in this episode so far: policies that aim at a return ask for it.
        Without `greedy` actions are drawn. Raises DataError, saying what was expected, for a wrong name or shape.
        """
        seen = seen_by(self.team, obs)
        fields = dict(seen.fields)
        there = [seen.names is None or name in seen.names for name in self.team.agents]
        present = there if agent_mask is None else agent_mask
        fields["agent_mask"] = _mask("agent_mask", present, *seen.lead, self.team.size)
        if self.team.masks_actions:
            fields["action_mask"] = _legal(self.team, action_mask, seen)
        elif action_mask is not None:
            raise DataError("this policy was trained where every action is legal: leave action_mask out")
        if self.team.forces_actions:  # what the environment does in an agent's place is its own affair here
            fields |= _unforced(self.team, seen.lead)
        if EARNED in self._actor.reads:
            fields[EARNED] = _paid(earned, (*seen.lead, self.team.size))
        opens = _mask("start", False if start is None else start, *seen.lead)
        if not seen.lead:
            fields = {name: value.unsqueeze(0) for name, value in fields.items()}
        action = self._chosen(fields, opens.reshape(-1), greedy).cpu()
        return _in_kind(self.team, action if seen.lead else action.squeeze(0), seen)

    def _chosen(self, fields: Mapping[str, Tensor], start: Bool[Tensor, "env"], greedy: bool) -> Tensor:
        envs = len(start)
        inputs = {name: fields[name].to(self._device) for name in self._actor.reads}
        if not greedy:
            inputs |= self._actor.noise(envs, self._generator)
        fresh = self._actor.initial_memory(envs)
        if self._memory is None or fresh == ():
            self._memory, self._envs = fresh, envs
        if envs != self._envs:
            raise DataError(f"{self._envs} environments before, {envs} now: call reset() where others take their place")
        memory = cleared(self._memory, fresh, start.to(self._device)) if fresh != () else ()
        outputs, self._memory = self._actor(inputs, memory)
        return outputs["action"]


@dataclass(frozen=True)
class Seen:
    """An observation in a workspace's terms, and in which terms it came."""

    fields: dict[str, Tensor]
    """Field -> [*lead agent ...], padded to the widest group."""
    lead: tuple[int, ...]
    """() for one environment, or (environments,)."""
    names: tuple[str, ...] | None
    """The agents of a dict by name; None where arrays hold the whole team."""
    is_numpy: bool


def seen_by(team: TeamSpec, obs: object) -> Seen:
    """The observation of a team, in any of the forms that `LoadedPolicy` takes. Raises DataError for any other."""
    given = obs if isinstance(obs, Mapping) else {"obs": obs}
    names = None
    if set(given) <= set(team.agents):
        names = tuple(given)
        fields = _joined(team, given)
    else:
        _refuse_other("field" if set(given) & set(team.parts) else "field or agent", given, team.parts, team.agents)
        fields = {name: _tensor(name, given[name], (team.size, *_shape(part))) for name, part in team.parts.items()}
    leads = {name: tuple(field.shape[: -1 - len(_shape(team.parts[name]))]) for name, field in fields.items()}
    if len(set(leads.values())) > 1:
        raise DataError(f"the parts of an observation hold unequal numbers of environments: {leads}")
    return Seen(fields, next(iter(leads.values())), names, not any(isinstance(leaf, Tensor) for leaf in _leaves(obs)))


def _joined(team: TeamSpec, by_name: Mapping[str, object]) -> dict[str, Tensor]:
    """Fields of the whole team from observations by agent name; what absent agents see is zeros."""
    if not by_name:
        raise DataError(f"an observation of nobody: give those of some of the agents {list(team.agents)}")
    fields: dict[str, Tensor] = {}
    for agent, value in by_name.items():
        index = team.agents.index(agent)
        shapes = {name: _shape(part) for name, part in _parts(team.observation[team.group_of[index]]).items()}
        values = {f"obs/{name}": part for name, part in value.items()} if isinstance(value, Mapping) else {"obs": value}
        _refuse_other(f"field of {agent}", values, shapes)
        for name, shape in shapes.items():
            own = _tensor(f"{name} of {agent}", values[name], shape)
            lead = own.shape[: own.ndim - len(shape)]
            whole = fields.setdefault(name, own.new_zeros(*lead, team.size, *_shape(team.parts[name])))
            if whole.shape[: -1 - len(shape)] != lead:
                raise DataError(f"{name} of {agent} holds {list(lead)} environments, those before another number")
            whole[(..., index, *(slice(size) for size in shape))] = own
    return fields


def _legal(team: TeamSpec, mask: object, seen: Seen) -> Bool[Tensor, "..."]:
    """The mask of legal actions over the team, from an array or a dict by agent name."""
    if mask is None:
        raise DataError("this policy was trained with illegal actions masked: give act(..., action_mask=...)")
    choices = team.legal_actions.shape[1:]
    if not isinstance(mask, Mapping):
        return _mask("action_mask", mask, *seen.lead, team.size, *choices)
    _refuse_other("agent in action_mask", mask, seen.names or team.agents)
    legal = torch.zeros(*seen.lead, team.size, *choices, dtype=torch.bool)
    for agent, own in mask.items():
        index = team.agents.index(agent)
        sizes = team.action_sizes[index]
        shape = sizes if team.action_kind is Discrete else (len(sizes), max(sizes))
        part = (..., index, *(slice(size) for size in shape))
        legal[part] = _mask(f"action_mask of {agent}", own, *seen.lead, *shape)
    return legal


def _unforced(team: TeamSpec, lead: tuple[int, ...]) -> dict[str, Tensor]:
    schema = Schema.from_team(team)
    return {
        name: torch.zeros(*lead, team.size, *schema[name].shape, dtype=schema[name].dtype)
        for name in ("forced", "forced_action")
    }


def _in_kind(team: TeamSpec, action: Tensor, seen: Seen) -> Actions:
    """The actions in the terms in which the observation came; by name, each agent's own numbers alone."""
    if seen.names is None:
        return action.numpy() if seen.is_numpy else action
    own: dict[str, Tensor] = {}
    for name in seen.names:
        index = team.agents.index(name)
        own[name] = action.select(len(seen.lead), index)
        if team.action_kind is not Discrete:
            own[name] = own[name][..., : len(team.action_sizes[index])]
    return {name: each.numpy()[()] for name, each in own.items()} if seen.is_numpy else own


def _parts(space: Observation) -> dict[str, Vector | Image]:
    is_whole = isinstance(space, Vector | Image)
    return {"obs": space} if is_whole else {f"obs/{name}": part for name, part in space.items()}


def _shape(part: Vector | Image) -> tuple[int, ...]:
    return part.shape if isinstance(part, Image) else (part.size,)


def _leaves(obs: object) -> Iterable[object]:
    if not isinstance(obs, Mapping):
        return (obs,)
    return (leaf for branch in obs.values() for leaf in _leaves(branch))


def _tensor(name: str, value: object, shape: tuple[int, ...]) -> Tensor:
    """The value as a tensor of this shape, or with one more axis in front: environments."""
    try:
        tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is no array of numbers: {error}") from error
    if tensor.shape[tensor.ndim - len(shape) :] != shape or not 0 <= tensor.ndim - len(shape) <= 1:
        raise DataError(
            f"{name} has shape {list(tensor.shape)}, this policy takes {list(shape)}, "
            f"or [environments, {', '.join(map(str, shape))}] for many at once"
        )
    return tensor


def _mask(name: str, value: object, *shape: int) -> Bool[Tensor, "..."]:
    """The mask in full: one for all environments is repeated."""
    whole = tuple(shape)
    try:
        return torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)).bool().expand(whole)
    except (TypeError, RuntimeError) as error:
        raise DataError(f"{name} does not fit {list(whole)}, as the observation asks for") from error


def _paid(earned: object, shape: tuple[int, ...]) -> Float[Tensor, "..."]:
    """What each agent was paid so far."""
    if earned is None:
        raise DataError("this policy aims at a return: tell it what was paid so far in act(..., earned=...)")
    try:
        return torch.as_tensor(earned if isinstance(earned, Tensor) else np.asarray(earned)).float().expand(shape)
    except (TypeError, RuntimeError) as error:
        raise DataError(f"earned does not fit {list(shape)}, as the observation asks for") from error


def _refuse_other(kind: str, given: Iterable[str], known: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises DataError where a name is unknown (`others` would have been right, too), or a known one is missing."""
    known = tuple(known)
    for name in given:
        if name not in known:
            raise DataError(f"no {kind} is called {name!r}{nearest(str(name), (*known, *others))}")
    missing = [name for name in known if name not in tuple(given)]
    if missing:
        raise DataError(f"{kind} {missing[0]!r} is missing: this policy needs {', '.join(known)}")
