"""Learners whose networks change their size: one's state becomes another's, and it is measured what outputs did."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from martes.algorithms.learner import Algorithm, Learner, Resizable
from martes.data import Continuous, Field, Fields, Schema, TeamSpec
from martes.errors import ConfigError
from martes.networks import Chain, Network, TemporalModule
from martes.networks.autoregressive import TurnShape
from martes.networks.growth import Parts, transfer
from martes.networks.mixers import Mixing
from martes.networks.stacked import StackedLinear, StackedNorm, undrawn

WIDTHS = ("hidden", "added", "channels", "memory_size", "feed_forward_size", "hypernet")
"""The fields of networks that may grow without moving any output."""
TOLERANCE = 1e-4
"""What rounding may move an output, of its scale."""


class Resized(NamedTuple):
    """A learner's state for networks of another size."""

    state: dict[str, object]
    moved: dict[str, float]
    """How far each output of the policy and its values moved, at most, on random observations of the team."""
    weights: int
    """How many weights there are more, or fewer, targets not counted."""

    @property
    def note(self) -> str:
        """The measured change in words."""
        name = max(self.moved, key=lambda each: self.moved[each], default="")
        outputs = f"outputs moved by {self.moved[name]:.2g} at most ({name})" if name else "no output to compare"
        return f"{self.weights:+d} weights, {outputs}" if self.weights else outputs


@dataclass(frozen=True)
class Resizing:
    """The step from one config to another that differs in its networks' sizes, for learners of a team.

    `accepts_change`: shrink, and change what cannot be exact, such as heads; else ConfigError names what would not be.
    """

    team: TeamSpec
    old: Algorithm
    new: Algorithm
    accepts_change: bool = False

    def resized(self, state: Mapping[str, object], generator: torch.Generator) -> Resized:
        """The state of `new`'s learner that knows what that of `old` knew.

        Networks, their targets and the moments of optimisers follow one map (`networks.growth`); counters and random
        state stay; new weights come from `generator`. Raises ConfigError where this learner's networks cannot change.
        """
        if not self.accepts_change:
            self._refuse_inexact()
        with undrawn():
            was = self.old.learner(self.team, torch.Generator(generator.device).manual_seed(0))
        was.load_state_dict(dict(state))
        now = self.new.learner(self.team, generator)
        known, parts = parts_of(was), parts_of(now)
        transfer(known, parts, accepts_change=self.accepts_change)
        before, after = outputs_by_chance(was, self.team), outputs_by_chance(now, self.team)
        moved = moves(before, after)
        wrong = [name for name, each in moved.items() if each > TOLERANCE * (1 + before[name].abs().max().item())]
        if wrong and not self.accepts_change:
            raise ConfigError(f"{', '.join(wrong)} would move by {moved[wrong[0]]:.2g}: accept a change, or undo it")
        resized = {name: each for name, each in now.state_dict().items() if name in parts}
        return Resized({**state, **resized}, moved, _weights(parts) - _weights(known))

    def _refuse_inexact(self) -> None:
        for path, before, after in differences(self.old, self.new):
            if path.rpartition(".")[2] not in WIDTHS:
                raise ConfigError(
                    f"{path} cannot go from {before} to {after} without moving outputs: what grows exactly is "
                    f"{', '.join(WIDTHS)}. Set accepts_change, and the change is measured"
                )


def differences(
    old: object, new: object, path: str = "algorithm", is_shape: bool = False
) -> Iterator[tuple[str, object, object]]:
    """Path, old and new value of what differs in the shapes of networks, at any depth."""
    is_shape = is_shape or isinstance(old, Network | TurnShape | Mixing)
    pairs: list[tuple[str, object, object]] = []
    if is_dataclass(old) and type(old) is type(new):
        pairs = [(each.name, getattr(old, each.name), getattr(new, each.name)) for each in fields(old)]
    elif isinstance(old, Mapping) and isinstance(new, Mapping) and old.keys() == new.keys():
        pairs = [(str(name), old[name], new[name]) for name in old]
    elif is_shape and old != new:
        yield path, old, new
    for name, before, after in pairs:
        yield from differences(before, after, f"{path}.{name}", is_shape)


def parts_of(learner: Learner) -> Parts:
    """Its networks, targets and optimisers. Raises ConfigError where it does not tell them."""
    parts = learner.parts if isinstance(learner, Resizable) else {}
    if not parts or not all(isinstance(each, nn.Module | Optimizer) for each in parts.values()):
        name = type(learner).__name__
        raise ConfigError(f"the networks of a {name} cannot change their size: it does not tell its `parts`")
    return parts


def _weights(parts: Parts) -> int:
    """How many weights are learned; padding of unequal slots is none."""
    modules = {id(each): each for part in parts.values() if isinstance(part, nn.Module) for each in part.modules()}
    learned = {id(each): each for module in modules.values() for each in module.parameters(recurse=False)}
    padded = (each for each in modules.values() if isinstance(each, StackedLinear | StackedNorm))
    padding = sum(each.padding for each in padded if each.weight.requires_grad)
    return sum(each.numel() for each in learned.values() if each.requires_grad) - padding


def moves(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """How far apart the numbers of each output are, at most; features and what has another shape are left out."""
    return {
        name: (value - after[name]).abs().max().item()
        for name, value in before.items()
        if name in after and value.is_floating_point() and value.shape == after[name].shape and name != "features"
    }


@torch.no_grad()
def outputs_by_chance(learner: Learner, team: TeamSpec) -> dict[str, Tensor]:
    """What a learner's policy gives, `time env ...`, on `observed_by_chance`: scores, values, what it has of both."""
    policy, steps = learner.policy, list(observed_by_chance(team))
    device = next((each.device for each in policy.parameters()), torch.device("cpu"))
    memory, found = policy.initial_memory(len(steps[0]["agent_mask"])), list[Fields]()
    values_apart = type(policy).value not in (TemporalModule.value, Chain.value)
    for step in steps:
        inputs = {name: each.to(device) for name, each in step.items()}
        value = {"value": policy.value(inputs, memory)} if values_apart else {}
        given, memory = type(policy).step(policy, inputs, memory)  # as it is written, compiled or not
        found.append(value | given)
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def observed_by_chance(team: TeamSpec, steps: int = 3, envs: int = 16) -> Iterator[Fields]:
    """Steps of a team that is all there: standard normal numbers, random pictures, legal actions; always the same."""
    generator = torch.Generator().manual_seed(0)
    schema = Schema.from_team(team)
    seen = [name for name in schema if schema[name].extra_row and name not in (*_SET, "start")]
    legal = team.legal_actions
    for _ in range(steps):
        drawn = {name: _drawn(schema[name], schema.shape(name, 0, envs)[1:], generator) for name in seen}
        there = torch.ones(envs, team.size, dtype=torch.bool)
        done = _actions(team, envs, generator)
        masks = {"agent_mask": there, "action_mask": legal.expand(envs, *legal.shape)}
        yield {**drawn, **masks, **done, "forced": ~there, "forced_action": done["action"]}


_SET = ("agent_mask", "action_mask", "forced", "forced_action")


def _drawn(field: Field, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if field.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(field.dtype)
    return torch.randint(256 if field.dtype == torch.uint8 else 2, shape, generator=generator).to(field.dtype)


def _actions(team: TeamSpec, envs: int, generator: torch.Generator) -> Fields:
    """Legal actions; of continuous ones also the sample before squashing."""
    legal = team.legal_actions
    if team.action_kind is Continuous:
        sample = torch.randn(envs, *legal.shape, generator=generator)
        low, high = (each.expand_as(sample) for each in team.bounds)
        return {"sample": sample, "action": torch.lerp(low, high, (sample.tanh() + 1) / 2)}
    chances = legal.flatten(0, -2).float()
    chances[:, 0] += chances.sum(1) == 0  # an agent without this part of an action
    drawn = torch.multinomial(chances, envs, replacement=True, generator=generator)
    return {"action": drawn.T.reshape(envs, *legal.shape[:-1])}
