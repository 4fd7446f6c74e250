"""A rollout that was recorded in somebody's own loop, as the window that a learner takes."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from martes.data import Memory, Schema, Workspace
from martes.data.arguments import ArgumentError, Arguments
from martes.data.trees import cleared, mapped
from martes.errors import nearest
from martes.networks import AutoregressiveTeam

REQUIRED = ("observations", "actions", "values", "rewards", "log_probs", "dones", "next_obs")
OPTIONAL = ("legal_actions", "hstates", "truncated", "final_obs")
LEAD = "rollout_length batch n_agents"


def recorded(policy: AutoregressiveTeam, schema: Schema, read: Arguments, rollout: Mapping[str, object]) -> Workspace:
    """The window of a rollout, `next_value` included. Raises ArgumentError, naming the entry that cannot be.

    An episode is over for the team where each agent is done or truncated. An agent that is done, and not truncated,
    can expect nothing more (discount 0).
    """
    rollout = _named(rollout)
    obs = read.numbers("observations", rollout["observations"], f"{LEAD} obs_dim")
    after = read.numbers("next_obs", rollout["next_obs"], "batch n_agents obs_dim")
    dones = read.team_flags("dones", rollout["dones"], "rollout_length batch")
    truncated = read.team_flags("truncated", rollout.get("truncated", torch.zeros_like(dones)), "rollout_length batch")
    cut = (dones | truncated).all(2)
    given = {
        "obs": torch.cat((obs, after.unsqueeze(0))),
        "start": torch.cat((torch.zeros_like(cut[:1]), cut)),  # what row 0 remembers, its memory says
        "cut": cut,
        "discount": (truncated | ~dones).float(),
        "reward": read.numbers("rewards", rollout["rewards"], LEAD),
        "value": read.numbers("values", rollout["values"], LEAD),
        "log_prob": read.numbers("log_probs", rollout["log_probs"], LEAD),
    }
    legal = read.legal(rollout["legal_actions"], LEAD) if "legal_actions" in rollout else None
    given |= read.choice(rollout["actions"], LEAD, legal)
    if legal is not None:
        given["action_mask"] = torch.cat((legal, torch.ones_like(legal[:1])))
    window = _filled(schema, given)
    fresh = policy.initial_memory(window.envs)
    window.memory = read.memory(rollout.get("hstates", fresh), fresh)
    window["next_value"] = _next_value(policy, window, _final(read, rollout, window))
    return window


def _named(rollout: object) -> dict[str, object]:
    """The entries that were given. Raises ArgumentError where one is unknown or missing, or there are none to read."""
    if not isinstance(rollout, Mapping):
        raise ArgumentError(f"rollout_data is {type(rollout).__name__}: give a dict of {', '.join(REQUIRED)}")
    given = {str(name): value for name, value in rollout.items() if value is not None}
    for name in given:
        if name not in (*REQUIRED, *OPTIONAL):
            raise ArgumentError(f"{name} is no entry of a rollout{nearest(name, (*REQUIRED, *OPTIONAL))}")
    for name in REQUIRED:
        if name not in given:
            raise ArgumentError(f"{name} is missing: a rollout holds {', '.join(REQUIRED)}")
    return given


def _filled(schema: Schema, given: Mapping[str, Tensor]) -> Workspace:
    """A workspace of these fields, all steps written; what is not given is as before the first write."""
    cut = given["cut"]
    tensors = {
        name: given[name] if name in given else torch.full(
            schema.shape(name, *cut.shape), field.fill, dtype=field.dtype, device=cut.device
        )
        for name, field in schema.items()
    }  # fmt: skip
    return Workspace.of(schema, tensors, torch.ones_like(cut))


def _by_time(window: Workspace) -> Bool[Tensor, "time env"]:
    """Where an episode was cut of which more was to be expected."""
    return window["cut"] & (window["discount"] > 0).any(2)


def _final(
    read: Arguments, rollout: Mapping[str, object], window: Workspace
) -> Float[Tensor, "cut agent feature"] | None:
    """The real last observations of the episodes that time cut, in their order; None where nobody kept them."""
    if "final_obs" not in rollout:
        return None
    shown = read.shaped("final_obs", rollout["final_obs"], f"{LEAD} obs_dim")
    by_time = _by_time(window)
    return read.numbers("final_obs", shown.masked_fill(~by_time[:, :, None, None], 0), f"{LEAD} obs_dim")[by_time]


@torch.no_grad()
def _next_value(
    policy: AutoregressiveTeam, window: Workspace, final: Float[Tensor, "cut agent feature"] | None
) -> Float[Tensor, "time env agent"]:
    """V of the step that follows; where time cut an episode, V of the real last observation, its memory still there.

    Without the real last observation the value of the step before, which is one step old, stands in.
    """
    value, by_time = window["value"], _by_time(window)
    places = by_time if final is not None else torch.zeros_like(by_time)
    memories, after = _memories(policy, window, places)
    after = cleared(after, policy.initial_memory(window.envs), window["start"][-1])
    seen = window["obs"][-1] if final is None else torch.cat((final, window["obs"][-1]))
    there = torch.ones_like(seen[..., 0], dtype=torch.bool)
    valued = policy.value({"obs": seen, "agent_mask": there}, mapped(_joined, after, *memories))
    last, ends = valued[-window.envs :], valued[: -window.envs]
    next_value = torch.cat((value[1:], last.unsqueeze(0)))
    next_value[by_time] = value[by_time] if final is None else ends
    return next_value


def _joined(last: Tensor, *before: Tensor) -> Tensor:
    return torch.cat((*before, last))


def _memories(
    policy: AutoregressiveTeam, window: Workspace, places: Bool[Tensor, "time env"]
) -> tuple[list[Memory], Memory]:
    """The memory after the step at each place, before any reset, in the order of places; and that after the window."""
    memory, begin, found = window.memory, 0, list[Memory]()
    ends = [int(t) + 1 for t in places.any(1).nonzero()]
    for end in dict.fromkeys((*ends, window.time)):
        inputs = {name: window[name][begin:end] for name in (*policy.reads, *policy.given)}
        if memory != ():
            _, memory = policy.sequence(inputs, memory, window["start"][begin:end])
        envs = places[end - 1].nonzero().squeeze(1)
        found.append(mapped(lambda leaf, envs=envs: leaf.index_select(0, envs), memory))
        begin = end
    return found, memory
