"""Hidden states kept from block to block, in a file or where they are."""

from pathlib import Path

import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file

from edgeslim import activations
from edgeslim.activations import Activations
from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint
from edgeslim.pruner import PruneJob, prune_checkpoint
from edgeslim.pruning.methods import PruneConfig


@pytest.fixture(params=[False, True], ids=["in a file", "where they are"])
def states(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Activations:
    monkeypatch.setattr(activations, "_stays", lambda batch: request.param)
    return Activations(tmp_path / "states")


def test_each_batch_comes_back_as_it_was_written_last(states: Activations) -> None:
    batches = [torch.randn(rows, 3, 5) for rows in (2, 2, 1)]
    for batch in batches:
        states.append(batch.to(torch.bfloat16) if len(batch) == 1 else batch)
    assert len(states) == 3 and states.path.exists() == (not isinstance(states._batches[0], torch.Tensor))
    assert torch.equal(states.read(1), batches[1]) and states.read(2).dtype == torch.float32
    states.write(1, batches[0].clone())
    assert torch.equal(states.read(1), batches[0]) and torch.equal(states.read(0), batches[0])


def test_what_was_read_or_written_may_change_without_a_change_to_what_is_kept(states: Activations) -> None:
    batch = torch.randn(2, 3, 5)
    expected = batch.clone()
    states.append(batch)
    batch.zero_()
    states.read(0).zero_()
    assert torch.equal(states.read(0), expected)


def test_batches_without_room_go_to_the_file_beside_those_that_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_stays", lambda batch: bool(batch[0, 0, 0] > 0))
    states, batches = Activations(tmp_path / "states"), [torch.full((1, 2, 3), sign) for sign in (-1.0, 1.0, -2.0)]
    for batch in batches:
        states.append(batch)
    assert all(torch.equal(states.read(i), batch) for i, batch in enumerate(batches))
    assert states.path.stat().st_size == 2 * 6 * 4


def test_a_prune_is_the_same_wherever_the_states_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "dense", "zamba2")
    tokens = torch.randint(300, (5, 16), generator=torch.Generator().manual_seed(0))
    job = PruneJob(config=PruneConfig(target="dense"), calibration=Calibration(tokens=tokens, description=""))
    prune_checkpoint(Checkpoint.open(folder), tmp_path / "file", job)
    monkeypatch.setattr(activations, "_stays", lambda batch: True)
    prune_checkpoint(Checkpoint.open(folder), tmp_path / "kept", job)
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("file", "kept"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
