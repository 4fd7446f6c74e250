"""Our batched games against the Python originals, which step one copy after the other."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from martes.bench.timing import Measurement, Side, rates, ratios
from martes.envs.catalogue import make_env
from martes.errors import MissingExtra, require


def spread(repeats: int) -> list[Measurement]:
    """Env-steps of batched spread to those of mpe2."""

    def original() -> Side:
        require("mpe2", "mpe")
        from mpe2 import simple_spread_v3

        env = simple_spread_v3.parallel_env(N=3, max_cycles=25)
        env.reset(seed=0)
        actions = torch.randint(5, (1000, 3), generator=torch.Generator().manual_seed(0)).tolist()

        def steps(count: int) -> int:
            for step in range(count):
                env.step(dict(zip(env.possible_agents, actions[step % 1000], strict=True)))
                if not env.agents:
                    env.reset()
            return count

        return steps

    return _against("spread vs mpe2", "mpe-spread", original, repeats, {32: 15, 1024: 150})


def foraging(repeats: int) -> list[Measurement]:
    """Env-steps of batched foraging to those of lbforaging."""
    original = partial(lbforaging, "Foraging-8x8-2p-2f-coop-v3")
    return _against("foraging vs lbforaging", "lbf-8x8-2p-2f-coop", original, repeats, {32: 5, 1024: 30})


def lbforaging(task: str) -> Side:
    """Steps of one copy of the package's own task. Raises MissingExtra where it is not installed."""
    require("lbforaging", "lbf")
    import gymnasium

    env = gymnasium.make(task, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    actions = torch.randint(6, (1000, 2), generator=torch.Generator().manual_seed(0)).tolist()

    def steps(count: int) -> int:
        for step in range(count):
            _, _, done, truncated, _ = env.step(actions[step % 1000])
            if done or truncated:
                env.reset()
        return count

    return steps


def _against(
    name: str, env: str, original: Callable[[], Side], repeats: int, targets: Mapping[int, float]
) -> list[Measurement]:
    """Ratios of env-steps a second, ours at several numbers of copies to the original's one after the other."""
    labels = {copies: f"{name}, {copies} copies" for copies in targets}
    try:
        sides = {name: original()} | {labels[copies]: stepped(env, copies) for copies in targets}
    except MissingExtra as error:
        return [Measurement(labels[copies], (), target, note=str(error)) for copies, target in targets.items()]
    found = rates(sides, repeats)
    return [
        Measurement(labels[copies], ratios(found[labels[copies]], found[name]), target)
        for copies, target in targets.items()
    ]


def stepped(name: str, copies: int) -> Side:
    """Steps of so many copies of one of our games, under actions drawn beforehand."""
    env = make_env(name, copies)
    env.reset(0)
    choices = env.team.legal_actions.shape[-1]
    shape = (100, copies, env.team.size)
    actions = torch.randint(choices, shape, generator=torch.Generator().manual_seed(0))

    def steps(count: int) -> int:
        for step in range(count):
            env.step(actions[step % 100])
        return count * copies

    return steps
