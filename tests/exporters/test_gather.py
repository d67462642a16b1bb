"""Lowering gather: blocks of outputs read their own inputs, on stock onnxruntime alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from families import save_tiny
from safetensors.torch import load_file, save_file

from edgeslim.errors import ExportError
from edgeslim.exporters import export_checkpoint
from edgeslim.exporters.onnx_model import export_onnx
from edgeslim.exporters.parity import sample_tokens
from edgeslim.exporters.passes.gather_linears import channels
from edgeslim.exporters.row_blocks import RowBlock
from edgeslim.pruning.patterns import Blocks, keep_mask
from edgeslim.runtime.generate import generate
from edgeslim.runtime.inspection import inspect_bundle
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.session import GenaiSession, OrtSession

Checkpoint = Callable[[str], Path]
ROWS = 32


def prune_blocks_(folder: Path, rows: int = ROWS, sparsity: float = 0.5) -> None:
    """Give every linear of the checkpoint in `folder` blocks that share random inputs."""
    g = torch.Generator().manual_seed(0)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and any(part in name for part in ("proj", "mlp.c_", "attn.c_")):
            weight = tensor.T if "c_" in name else tensor  # GPT-2 keeps its linears as [inputs, outputs]
            keep = keep_mask(torch.rand(weight.shape, generator=g), Blocks(rows=rows, sparsity=sparsity))
            tensors[name] = ((weight * keep).T if "c_" in name else weight * keep).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def gathered(family: str, folder: Path, weights: str = "auto", rows: int = ROWS) -> tuple[Path, Manifest]:
    checkpoint = save_tiny(folder / "checkpoint", family)
    prune_blocks_(checkpoint, rows)
    bundle = folder / "bundle"
    bundle.mkdir()
    return bundle, export_checkpoint(checkpoint, bundle, weights=weights, lowering="gather")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a llama with blocks; tests must not change it."""
    return gathered("llama", tmp_path_factory.mktemp("llama"))[0]


@pytest.mark.parametrize(
    ("family", "weights"), [("llama", "fp16"), ("gpt2", "auto"), ("phi3", "auto"), ("mamba2", "auto")]
)
def test_every_family_agrees_with_transformers_with_half_the_weights(family: str, weights: str, tmp_path: Path) -> None:
    bundle, manifest = gathered(family, tmp_path, weights)  # compared with transformers by the export itself

    assert manifest.lowering == "gather"
    assert manifest.weights == ("fp32" if weights == "auto" else weights)
    assert max(manifest.parity["max_abs_error"].values()) < 1e-5
    forms = {layer.form: layer for layer in manifest.layers}
    layer = forms[f"gather_{manifest.weights}"]
    assert layer.stored == 0.5
    assert layer.reason.startswith("50% of inputs kept in")
    assert not any(node.domain == "edgeslim" for node in ir.load(bundle / "model.onnx").graph)


def test_inspect_shows_it_and_counts_the_bytes_that_are_there(llama: Path) -> None:
    found = inspect_bundle(llama).to_json()
    layer = found["layers"][0]

    assert found["lowering"] == "gather" and layer["runs_on"] == "onnxruntime"
    graph = ir.load(llama / "model.onnx").graph
    product = next(node for node in graph if node.op_type == "Conv")
    index = next(node for node in graph if node.op_type == "Add" and (node.name or "").endswith("everywhere_add"))
    constants = [product.inputs[1], index.inputs[0]]
    stored = sum(value.const_value.nbytes for value in constants if value is not None and value.const_value is not None)
    assert layer["bytes"] == stored == layer["shape"][0] * layer["shape"][1] * 4 // 2 + 4 * 4 * 32


def test_both_engines_give_the_same_tokens(llama: Path) -> None:
    prompt = sample_tokens(llama)[0].tolist()

    assert list(generate(GenaiSession(llama, threads=1), prompt, 16)) == list(
        generate(OrtSession(llama, threads=1), prompt, 16)
    )


def test_several_sequences_at_once_give_what_each_gives_alone(llama: Path) -> None:
    tokens = np.random.default_rng(0).integers(3, 300, (3, 7))
    session = OrtSession(llama, threads=1)
    session.reset(batch=3)
    together = session.feed(tokens)
    for row, expected in zip(tokens, together, strict=True):
        session.reset()
        np.testing.assert_allclose(session.feed(row[None])[0], expected, atol=1e-5)


def test_ragged_blocks_get_convolutions_of_their_own(tmp_path: Path) -> None:
    bundle, manifest = gathered("llama", tmp_path, rows=40)  # 64, 32, 32 and 96 outputs
    graph = ir.load(bundle / "model.onnx").graph
    convolutions = [node for node in graph if node.op_type == "Conv"]

    assert max(manifest.parity["max_abs_error"].values()) < 1e-5
    down = [node for node in convolutions if "layers.0.mlp.down_proj" in (node.name or "")]
    assert [int(node.inputs[1].shape[0]) for node in down] == [40, 24]  # type: ignore[union-attr, index]


def test_products_of_one_input_that_read_the_same_share_one_gather(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    prune_blocks_(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    for layer in range(3):
        gate, up = (f"model.layers.{layer}.mlp.{name}_proj.weight" for name in ("gate", "up"))
        tensors[up] = tensors[up].normal_() * (tensors[gate] != 0)
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    (tmp_path / "bundle").mkdir()
    export_checkpoint(checkpoint, tmp_path / "bundle", lowering="gather")
    graph = ir.load(tmp_path / "bundle" / "model.onnx").graph

    kinds = [node.op_type for node in graph]
    assert kinds.count("Conv") == 5 * 3
    assert kinds.count("GatherElements") == 4 * 3
    assert kinds.count("ConstantOfShape") == 1


def test_a_checkpoint_without_blocks_is_refused_with_the_pattern_it_needs(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"found none; prune with --pattern block:ROWS .* --lowering dense"):
        export_checkpoint(checkpoint("llama"), tmp_path, lowering="gather")


@pytest.mark.parametrize("weights", ["int8", "int4", "int3"])
def test_integers_are_refused_with_what_it_takes(weights: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"lowering gather takes weights fp32, fp16, got {weights}"):
        export_checkpoint(checkpoint("llama"), tmp_path, weights=weights, lowering="gather")  # type: ignore[arg-type]


def test_inputs_are_filled_up_to_whole_vectors_with_weights_of_zero() -> None:
    assert [channels(RowBlock(start=0, stop=1, columns=np.arange(n))) for n in (0, 1, 16, 17)] == [16, 16, 16, 32]


def test_an_onnx_model_made_elsewhere_is_gathered_too(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    g = torch.Generator().manual_seed(0)
    keep = keep_mask(torch.rand(96, 64, generator=g), Blocks(rows=32, sparsity=0.25))
    weight = (torch.randn(96, 64, generator=g) * keep).numpy()
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", 96])
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([product], "g", [x], [y], [numpy_helper.from_array(weight.T.copy(), "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    (tmp_path / "bundle").mkdir()
    manifest = export_onnx(tmp_path / "m.onnx", tmp_path / "bundle", lowering="gather")

    assert manifest.lowering == "gather" and manifest.layers[0].stored == 0.75
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx", providers=["CPUExecutionProvider"])
    value = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    np.testing.assert_allclose(session.run(None, {"x": value})[0], value @ weight.T, atol=1e-4)
