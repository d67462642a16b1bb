"""Pruning on a CUDA device gives what it gives on a CPU: a matrix by every method, a checkpoint of every family."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, save_tiny
from pruning.layers import random_layer
from safetensors.torch import load_file

from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint
from edgeslim.pruner import PruneJob, prune_checkpoint
from edgeslim.pruning.methods import METHODS, PruneConfig, prune_matrix
from edgeslim.pruning.patterns import NM, Blocks, Pattern, Unstructured
from edgeslim.pruning.statistics import InputStatistics
from edgeslim.quantize.grid import Grid

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PATTERNS = (Unstructured(sparsity=0.5), Unstructured(sparsity=0.5, scope="layer"), NM(n=2, m=4))
SETTINGS: dict[str, dict[str, Any]] = {
    "target dense": {"target": "dense"},
    "fast": {"effort": "fast"},
    "cholesky": {"solver": "cholesky"},
    "rule s": {"mask_rule": "s"},
    "rule m": {"mask_rule": "m", "pattern": NM(n=2, m=4)},
    "blocks": {"pattern": Blocks(rows=8, sparsity=0.25)},
    "int3": {"grid": Grid(bits=3, group=32)},
    "int4, 2:4": {"grid": Grid(bits=4, group=32), "pattern": NM(n=2, m=4)},
}


def both(config: PruneConfig) -> None:
    w, x = random_layer(48, 64, 300)
    x_dense = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected = prune_matrix(w, InputStatistics.of(x, x_dense), config)
    found = prune_matrix(w.cuda(), InputStatistics.of(x.cuda(), x_dense.cuda()), config)
    assert found.weight.is_cuda and found.relative_error == pytest.approx(expected.relative_error, rel=1e-3)
    if config.grid is None:
        assert float((found.keep.cpu() == expected.keep).double().mean()) > 0.999
        assert torch.allclose(found.weight.cpu()[expected.keep], expected.weight[expected.keep], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS, ids=["row", "layer", "2:4"])
@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_is_pruned_on_a_gpu_as_on_a_cpu(method: str, pattern: Pattern) -> None:
    both(PruneConfig(method=method, pattern=pattern, precision="float64"))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_setting_is_the_same_on_a_gpu(settings: dict[str, Any]) -> None:
    both(PruneConfig(**{"precision": "float64", **settings}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_every_family_is_pruned_on_a_gpu(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", family)
    tokens = torch.randint(300, (10, 24), generator=torch.Generator().manual_seed(0))
    reports = {}
    for device in ("cpu", "cuda"):
        job = PruneJob(
            config=PruneConfig(target="dense"), calibration=Calibration(tokens=tokens, description=""), device=device
        )
        reports[device] = prune_checkpoint(Checkpoint.open(folder), tmp_path / device, job)
    cpu, cuda = reports["cpu"], reports["cuda"]
    assert [linear.name for linear in cuda.linears] == [linear.name for linear in cpu.linears]
    assert cuda.sparsity == cpu.sparsity
    assert cuda.relative_error == pytest.approx(cpu.relative_error, rel=0.02)
    dense = load_file(folder / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "cuda" / "model.safetensors").values())
    assert dense.keys() == load_file(tmp_path / "cuda" / "model.safetensors").keys()
