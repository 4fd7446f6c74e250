"""What acting pays for."""

from dataclasses import replace

import pytest
from torch import Tensor

from martes.algorithms.registry import algorithm_named
from martes.maths.distributions import Categorical, SquashedGaussian
from tests.algorithms.rollouts import collected
from tests.worlds import World

CASES = [(name, kind) for name in ("ippo", "rec-sable", "mat") for kind in ("discrete", "multi", "continuous")]


@pytest.mark.parametrize(("name", "kind"), [*CASES, ("coma", "discrete")])
def test_entropies_are_computed_to_learn_and_not_to_act(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []

    def watch(of: type[Categorical | SquashedGaussian]) -> None:
        entropy = of.entropy

        def watched(self: Categorical | SquashedGaussian) -> Tensor:
            computed.append(of.__name__)
            return entropy(self)  # pyright: ignore

        monkeypatch.setattr(of, "entropy", watched)

    for each in (Categorical, SquashedGaussian):
        watch(each)
    config = replace(algorithm_named(name), rollout=8, **({"reward": "mean"} if name == "coma" else {}))
    learner, window = collected(World(kind), config)  # pyright: ignore
    assert not computed
    learner.update(window)
    assert computed
