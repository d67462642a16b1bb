"""Checkpoints on a grid: their scales lie beside them, survive a kill, and an export packs without rounding again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file, save_file

from edgeslim.calibration import Calibration
from edgeslim.checkpoint import Checkpoint
from edgeslim.errors import CheckpointError, ExportError
from edgeslim.exporters.bundle import export_checkpoint
from edgeslim.gridfile import GRID_FILE, LinearGrid, read_grids, write_grids
from edgeslim.pruner import PruneJob, PruneReport, prune_checkpoint
from edgeslim.pruning.methods import PruneConfig
from edgeslim.pruning.patterns import Unstructured
from edgeslim.quantize.grid import Grid, parse_grid

TOKENS = torch.randint(300, (8, 24), generator=torch.Generator().manual_seed(0))
INT4 = PruneConfig(effort="fast", grid=Grid(bits=4, group=32))
INT3 = PruneConfig(effort="fast", grid=Grid(bits=3, group=32))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _quantize(folder: Path, output: Path, config: PruneConfig = INT4, **options: Any) -> PruneReport:
    calibration = Calibration(tokens=TOKENS, description="random tokens")
    return prune_checkpoint(
        Checkpoint.open(folder), output, PruneJob(config=config, calibration=calibration, **options)
    )


def _quantized(tmp_path: Path, family: str, config: PruneConfig = INT4, **options: Any) -> Path:
    folder = save_tiny(tmp_path / "dense", family, dtype=torch.bfloat16)
    _quantize(folder, tmp_path / "quantized", config, **options)
    return tmp_path / "quantized"


def test_every_weight_is_an_integer_times_the_scale_in_the_file(tmp_path: Path) -> None:
    folder = _quantized(tmp_path, "llama")
    weights = load_file(folder / "model.safetensors")
    grids = read_grids(folder / GRID_FILE)
    assert len(grids) == 21
    for name, entry in grids.items():
        weight = weights[f"{name}.weight"]
        assert weight.dtype == torch.bfloat16 and entry.grid == INT4.grid
        scales = torch.from_numpy(entry.scales).float().repeat_interleave(32, 1)[:, : weight.shape[1]]
        integers = (weight.float() / scales).round()
        assert torch.equal((integers * scales).bfloat16(), weight)
        assert float(integers.min()) >= -8 and float(integers.max()) <= 7
        assert 0.45 < float((integers != 0).float().mean()) <= 0.5
    key = json.loads((folder / "config.json").read_text())["edgeslim"]
    assert key["grid"] == {"file": GRID_FILE, "bits": 4, "group": 32}
    assert key["prune"]["grid"] == "int4:32"


def test_the_report_says_bits_for_each_linear_and_in_all(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    report = _quantize(folder, tmp_path / "quantized")
    assert report.quantize == "int4:32"
    assert report.bits is not None and 3.3 < report.bits <= 3.5  # half of 4, a mask, 16 / 32 of a scale
    assert all(linear.quantize == "int4:32" and linear.bits is not None for linear in report.linears)


def test_a_rule_gives_some_linears_a_form_of_their_own(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    dense_int8 = PruneConfig(effort="fast", pattern=Unstructured(sparsity=0.0), grid=Grid(bits=8, group=0))
    rules = (("*.down_proj", dense_int8), ("*.0.self_attn.*", PruneConfig(effort="fast")))
    report = _quantize(folder, tmp_path / "quantized", rules=rules)
    grids = read_grids(tmp_path / "quantized" / GRID_FILE)
    for linear in report.linears:
        if linear.name.endswith("down_proj"):
            assert linear.quantize == "int8:0" and linear.sparsity == 0 and grids[linear.name].scales.shape[1] == 1
        elif ".0.self_attn" in linear.name:
            assert linear.quantize is None and linear.name not in grids
        else:
            assert linear.quantize == "int4:32" and linear.sparsity == 0.5
    assert report.bits is None


def test_a_run_cut_short_goes_on_to_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "dense", "llama")
    _quantize(folder, tmp_path / "whole")
    calls = 0

    def stop(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the second of three blocks
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    import edgeslim.pruner as pruner

    original = pruner.prune_matrix
    monkeypatch.setattr(pruner, "prune_matrix", stop)
    with pytest.raises(KeyboardInterrupt):
        _quantize(folder, tmp_path / "cut")
    monkeypatch.setattr(pruner, "prune_matrix", original)
    _quantize(folder, tmp_path / "cut")
    assert (tmp_path / "cut" / GRID_FILE).read_bytes() == (tmp_path / "whole" / GRID_FILE).read_bytes()


def test_pruning_again_forgets_the_grids_of_what_it_touches_only(tmp_path: Path) -> None:
    folder = _quantized(tmp_path, "llama")
    _quantize(folder, tmp_path / "again", PruneConfig(method="magnitude"), include=("*.mlp.*",))
    grids = read_grids(tmp_path / "again" / GRID_FILE)
    assert len(grids) == 12 and all("self_attn" in name for name in grids)
    _quantize(folder, tmp_path / "floats", PruneConfig(method="magnitude"))
    assert not (tmp_path / "floats" / GRID_FILE).exists()
    assert "grid" not in json.loads((tmp_path / "floats" / "config.json").read_text())["edgeslim"]


@pytest.mark.parametrize(
    ("family", "lowering"), [("llama", "kernel"), ("llama", "dense"), ("phi3", "kernel"), ("gpt2", "kernel")]
)
def test_an_export_packs_the_very_integers(tmp_path: Path, family: str, lowering: Any) -> None:
    folder = _quantized(tmp_path, family)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    manifest = export_checkpoint(folder, bundle, lowering=lowering)
    assert manifest.weights == "int4"
    # Packed weights, float32 activations, against transformers on the integers times their scales: sums differ alone.
    assert max(manifest.parity["max_abs_error"].values()) < 1e-4 * manifest.parity["logit_scale"]
    linears = [layer for layer in manifest.layers if "proj" in layer.name]
    assert all("int4" in layer.form and "32" in layer.form for layer in linears)


def test_an_export_of_mixed_forms_keeps_each(tmp_path: Path) -> None:
    rules = (("*.up_proj", INT3), ("*.k_proj", INT3))
    folder = _quantized(tmp_path, "llama", rules=rules)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    forms = {layer.name: layer.form for layer in export_checkpoint(folder, bundle, lowering="kernel").layers}
    assert "int3g32" in forms["model.layers.0.mlp.up_proj"] and "int4g32" in forms["model.layers.0.mlp.gate_proj"]
    assert "int4g32" in forms["model.layers.0.self_attn.q_proj+k_proj+v_proj"]  # one matrix: as wide as its widest


def test_an_altered_tensor_and_a_width_too_small_are_refused(tmp_path: Path) -> None:
    folder = _quantized(tmp_path, "llama")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(ExportError, match=r"int3 cannot hold .*21 linears on int4:32.*auto or int4"):
        export_checkpoint(folder, bundle, weights="int3")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3] *= 1.02
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"layers\.1\.mlp\.down_proj: its weights do not lie on the grid"):
        export_checkpoint(folder, bundle)


def test_joined_linears_of_which_one_has_no_grid_are_refused(tmp_path: Path) -> None:
    folder = _quantized(tmp_path, "llama", exclude=("*.k_proj",))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(ExportError, match=r"do not go together: .*k_proj none"):
        export_checkpoint(folder, bundle)


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / GRID_FILE
    write_grids(path, {"a.b": LinearGrid(parse_grid("int3:64"), np.full((2, 3), 0.5, np.float16))})
    assert read_grids(path)["a.b"].grid == Grid(bits=3, group=64)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="not a file of grids"):
        read_grids(path)
    write_grids(path, {"a.b": LinearGrid(parse_grid("int3:64"), np.zeros((2, 3), np.float16))})
    with pytest.raises(CheckpointError, match="not zero"):
        read_grids(path)
    assert read_grids(tmp_path / "absent") == {}
