"""Predictors: data in, predictions out; both faces, padding, and what a sequence model must know."""

import pytest
import torch
from torch.nn import functional

from martes.data import Vector
from martes.networks import Network, TemporalModule
from martes.networks.predictors import Predictor

KINDS = {
    "gru": Network(hidden=(16,), memory="gru", memory_size=16),
    "attention": Network(hidden=(16,), memory="attention", memory_size=16, memory_heads=2, memory_window=6),
    "retention": Network(hidden=(16,), memory="retention", memory_size=16, memory_heads=2),
}


def made(kind: str, outputs: int = 4) -> Predictor:
    predictor = Predictor({"seen": Vector(3)}, outputs, KINDS[kind], torch.Generator().manual_seed(0))
    with torch.no_grad():
        predictor.head.weight.mul_(100)
    return predictor


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_sequence_is_as_if_it_were_alone(kind: str) -> None:
    predictor, data = made(kind), torch.randn(20, 3, 3)
    there = torch.ones(20, 3, dtype=torch.bool)
    there[12:, 1] = False
    found = predictor.predicted(data, there)
    data[12:, 1] = 1e6
    assert torch.allclose(predictor.predicted(data, there)[there], found[there], atol=1e-5)
    assert torch.allclose(found[:12, 1], predictor.predicted(data[:12, 1:2])[:, 0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_prediction_knows_what_comes_later_and_all_know_what_came_before(kind: str) -> None:
    predictor, data = made(kind), torch.randn(20, 2, 3)
    before = predictor.predicted(data)
    data[10] += 1
    after = predictor.predicted(data)
    assert torch.equal(before[:10], after[:10])
    assert not torch.allclose(before[11], after[11], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_faces_agree(kind: str) -> None:
    predictor, data = made(kind), torch.randn(30, 2, 1, 3)
    start = torch.rand(30, 2) < 0.1
    inputs = {"seen": data, "agent_mask": torch.rand(30, 2, 1) < 0.9}
    memory = predictor.initial_memory(2)
    whole, loop = (face(predictor, inputs, memory, start)[0] for face in (Predictor.sequence, TemporalModule.sequence))
    there = inputs["agent_mask"]
    assert torch.allclose(whole["prediction"][there], loop["prediction"][there], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_seen_at_first_is_remembered(kind: str, unchecked: None) -> None:
    """A task that nobody solves without memory: a letter, then nothing."""
    predictor = Predictor({"seen": Vector(3)}, 3, KINDS[kind], torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(predictor.parameters(), 1e-2)
    for _ in range(60):
        letters = torch.randint(3, (32,))
        seen = torch.zeros(6, 32, 3)
        seen[0] = functional.one_hot(letters, 3)
        loss = functional.cross_entropy(predictor.predicted(seen)[-1], letters)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
