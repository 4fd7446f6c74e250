"""Samples and sequences as workspaces, and batches drawn from them."""

import pytest
import torch

from martes.data import Field, Schema, Workspace
from martes.data.source import Source, samples, sequences
from martes.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(count: int) -> Workspace:
    return samples({"obs": torch.arange(count).float()[:, None], "label": torch.arange(count)})


def test_samples_are_environments_of_one_step():
    data = numbered(7)
    assert data["obs"].shape == (1, 7, 1, 1)
    assert data["label"].dtype == torch.int64
    assert data.mask.all() and data["start"][0].all() and data["cut"].all()
    team = samples({"obs": torch.zeros(4, 3, 2)}, agents=3)
    assert team["obs"].shape == (1, 4, 3, 2)
    assert team.mask.shape == (1, 4, 3)


def test_pictures_stay_bytes():
    data = samples({"obs": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)})
    assert Source(data, 2, generator()).drawn()["obs"].dtype == torch.uint8


def test_sequences_are_padded_and_padding_counts_nowhere():
    given = [
        {"obs": torch.full((length, 2), float(length)), "label": torch.full((length,), length)} for length in (3, 1, 5)
    ]
    data = sequences(given)
    assert data["obs"].shape == (5, 3, 1, 2)
    assert data.mask[..., 0].sum(0).tolist() == [3, 1, 5]
    assert data["cut"].nonzero().tolist() == [[0, 1], [2, 0], [4, 2]]
    loss = data["obs"][data.mask].sum()
    data["obs"][~data.mask] = 1e6
    assert data["obs"][data.mask].sum() == loss
    more = sequences([*given, {"obs": torch.zeros(9, 2), "label": torch.zeros(9, dtype=torch.int64)}])
    assert more["obs"][:, :3][more.mask[:, :3]].sum() == loss


def test_a_pass_draws_everything_once():
    source = Source(numbered(10), 4, generator())
    drawn = torch.cat([source.drawn()["label"].flatten() for _ in range(5)])
    assert drawn[:10].sort().values.tolist() == drawn[10:].sort().values.tolist() == list(range(10))
    assert drawn[:10].tolist() != list(range(10))
    again = Source(numbered(10), 4, generator())
    assert torch.equal(torch.cat([again.drawn()["label"].flatten() for _ in range(5)]), drawn)
    for _ in range(50):
        assert source.drawn()["label"].unique().numel() == 4
    once = [batch["label"].flatten().tolist() for batch in source.once()]
    assert once == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_batch_fills_a_step_of_another_workspace():
    schema = Schema({
        "obs": Field((1,)), "label": Field((), torch.int64), "value": Field(),
        "agent_mask": Field((), torch.bool, extra_row=True, fill=1),
    }, 1)  # fmt: skip
    workspace = Workspace(schema, time=3, envs=4)
    Source(numbered(10), 4, generator()).fill(workspace, 1)
    assert torch.equal(workspace["obs"][1, :, 0, 0], workspace["label"][1, :, 0].float())
    assert workspace.mask[:, 0, 0].tolist() == [False, True, False]
    with pytest.raises(DataError, match="environments"):
        Source(numbered(10), 3, generator()).fill(workspace)


def test_crops_begin_everywhere_alike():
    data = sequences([{"step": torch.arange(4)}] * 5)
    source = Source(data, 5, generator())
    starts = torch.cat([source.crops(3)["step"][0].flatten() for _ in range(200)])
    counts = starts.bincount(minlength=4)
    assert counts[2:].sum() == 0
    assert (counts[:2] - 500).abs().max() < 80  # five deviations
    crop = source.crops(3)
    assert torch.equal(crop["step"][:, :, 0], crop["step"][0, :, 0] + torch.arange(3)[:, None])
    assert crop["agent_mask"].shape == (4, 5, 1)


def test_a_short_sequence_is_taken_whole():
    data = sequences([{"step": torch.arange(2)}, {"step": torch.arange(6)}])
    crop = Source(data, 2, generator()).crops(4)
    lengths = crop.mask[..., 0].sum(0)
    assert sorted(lengths.tolist()) == [2, 4]
    short = int(lengths.argmin())
    assert crop["step"][:2, short, 0].tolist() == [0, 1]


def test_the_source_has_no_weights_and_follows_the_datas_device():
    source = Source(numbered(4), 2, generator())
    assert not hasattr(source, "parameters")
    assert source.drawn().device == source.data.device
    assert Source(numbered(4).to("meta"), 2, generator()).drawn().device.type == "meta"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: samples({"a": torch.zeros(3), "b": torch.zeros(4)}), r"unequal length.*'a': 3, 'b': 4"),
        (lambda: samples({}), "unequal length"),
        (lambda: sequences([]), "no sequence"),
        (lambda: sequences([{"a": torch.zeros(3)}, {"b": torch.zeros(3)}]), "'a' is missing"),
        (lambda: sequences([{"a": torch.zeros(3, 1)}, {"a": torch.zeros(3, 2)}]), "'a' is missing, or of another"),
        (lambda: samples({"a": torch.zeros(3, 2)}, agents=4), "'a' is .1, 3, 2."),
        (lambda: Source(numbered(4), 5, generator()), "a batch of 5 from 4"),
        (lambda: Source(numbered(4), 2, generator()).crops(2), "crops of 2 steps"),
    ],
)
def test_what_does_not_fit_is_told(make, told):
    with pytest.raises(DataError, match=told):
        make()
