"""Lowering tensorrt: basic operators of ONNX's own domain, 2:4 weights where TensorRT looks for them.

No TensorRT was at hand: the graphs are run by onnxruntime's CPU provider, and counted.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from families import FAMILIES, VOCAB, save_tiny, tiny_model
from onnx.defs import onnx_opset_version
from safetensors.torch import load_file, save_file

from edgeslim.errors import ExportError
from edgeslim.exporters import export_checkpoint
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.standard_bodies import OPSET
from edgeslim.exporters.passes.standard_operators import NEWER, StandardOperators, foreign
from edgeslim.exporters.tensorrt import CUDA, TENSORRT, follows_two_of_four, provider_options
from edgeslim.pruning.patterns import NM, keep_mask
from edgeslim.runtime.generate import generate
from edgeslim.runtime.inspection import inspect_bundle
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.providers import available_providers
from edgeslim.runtime.session import GenaiSession, OrtSession, open_session

Checkpoint = Callable[[str], Path]
MOBIUS_FAMILIES = ("llama", "gpt2", "gemma2", "phi3", "qwen3", "smollm3", "olmo2", "granite", "mamba2")
TOLERANCE = 1e-5  # float32 sums in another order


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose linears are 2:4 along their inputs."""
    folder = save_tiny(tmp_path_factory.mktemp("pruned") / "llama", "llama")
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "proj" in name:
            tensors[name] = tensor * keep_mask(tensor.abs(), NM(n=2, m=4))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bundles(pruned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundles of it, by weights; tests must not change them."""
    found = {}
    for weights in ("fp32", "fp16"):
        found[weights] = tmp_path_factory.mktemp(weights)
        export_checkpoint(pruned, found[weights], weights=weights, lowering="tensorrt")  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("family", MOBIUS_FAMILIES)
def test_every_family_agrees_with_transformers_without_an_operator_outside_onnx_s_own_domain(
    family: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    manifest = export_checkpoint(checkpoint(family), tmp_path, weights="fp32", lowering="tensorrt")

    assert manifest.lowering == "tensorrt"
    assert set(manifest.parity["max_abs_error"]) == {"whole", "split", "step", "all_positions"}
    assert max(manifest.parity["max_abs_error"].values()) < TOLERANCE
    for name in ("model.onnx", "scoring.onnx"):
        model = ir.load(tmp_path / name)
        assert foreign(list(model.graph)) == []
        assert dict(model.graph.opset_imports) == {"": OPSET} and not model.functions
        onnx.checker.check_model(tmp_path / name, full_check=True)  # every operator in the form of this opset


def test_operators_of_other_domains_and_newer_ones_are_listed() -> None:
    nodes = [ir.node("MatMul", []), ir.node("RMSNormalization", []), ir.node("MatMulNBits", [], domain="com.microsoft")]
    assert foreign(nodes) == ["ai.onnx::RMSNormalization", "com.microsoft::MatMulNBits"]
    newer = {name for name in NEWER if onnx.defs.has(name, onnx_opset_version())}
    assert {onnx.defs.get_schema(name).since_version >= OPSET for name in newer} == {True}


@pytest.mark.parametrize("weights", ["fp32", "fp16"])
def test_weights_stay_two_of_four_along_the_inputs_in_the_files_that_ship(
    weights: str, bundles: dict[str, Path]
) -> None:
    for name in ("model.onnx", "scoring.onnx"):
        products = [
            (node, node.inputs[1].const_value)
            for node in ir.load(bundles[weights] / name).graph
            if node.op_type == "MatMul" and node.inputs[1] is not None and node.inputs[1].const_value is not None
        ]
        assert len(products) == 5 * 3  # joined q, k and v; o; gate, up and down
        for _, tensor in products:
            assert tensor.dtype == (ir.DataType.FLOAT if weights == "fp32" else ir.DataType.FLOAT16)
            matrix = tensor.numpy()  # [K, N]: input channels along axis 0
            groups = np.count_nonzero(matrix.reshape(-1, 4, matrix.shape[1]), axis=1)
            assert groups.max() == 2 and np.count_nonzero(matrix) == matrix.size // 2
            across = np.count_nonzero(matrix.reshape(matrix.shape[0], -1, 4), axis=2)
            assert across.max() > 2  # not along the outputs


def test_half_products_agree_with_the_rounded_model(bundles: dict[str, Path]) -> None:
    manifest = Manifest.read(bundles["fp16"])
    parity = manifest.parity

    assert manifest.weights == "fp16"
    assert max(parity["max_abs_error"].values()) < TOLERANCE
    assert 0 < max(parity["shipped_max_abs_error"].values()) < 2e-3 * parity["logit_scale"]
    assert (bundles["fp16"] / "model.onnx.data").stat().st_size < 0.6 * manifest_size(bundles["fp32"])


def manifest_size(bundle: Path) -> int:
    return (bundle / "model.onnx.data").stat().st_size


@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba2"])
def test_greedy_tokens_equal_transformers_generate(family: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_checkpoint(checkpoint(family), tmp_path, weights="fp32", lowering="tensorrt")
    prompt = np.random.default_rng(1).integers(3, VOCAB, 17).tolist()
    with torch.inference_mode():
        expected = (
            tiny_model(family)
            .generate(  # type: ignore[operator]
                torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
            )[0, len(prompt) :]
            .tolist()
        )

    assert list(generate(OrtSession(tmp_path, threads=1), prompt, 24)) == expected
    assert list(generate(GenaiSession(tmp_path, threads=1), prompt, 24)) == expected


def test_padded_sequences_read_only_what_the_mask_lets_them(bundles: dict[str, Path]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(bundles["fp32"] / "scoring.onnx", providers=["CPUExecutionProvider"])
    empty = {
        value.name: np.zeros([2, value.shape[1], 0, value.shape[3]], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_")
    }
    tokens = np.array([[5, 6, 7, 8], [5, 6, 7, 300]])
    masks = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    logits = session.run(["logits"], {"input_ids": tokens, "attention_mask": masks, **empty})[0]
    np.testing.assert_allclose(logits[0, :3], logits[1, :3], atol=TOLERANCE)


def test_the_manifest_tells_the_providers_what_they_need(bundles: dict[str, Path]) -> None:
    for weights, half in (("fp32", "0"), ("fp16", "1")):
        providers = Manifest.read(bundles[weights]).providers
        options = providers[TENSORRT]
        assert list(providers) == [TENSORRT, CUDA]
        assert (options["trt_fp16_enable"], options["trt_sparsity_enable"]) == (half, "1")
        assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "trt_engines")
        assert options["trt_profile_min_shapes"].startswith(
            "input_ids:1x1,attention_mask:1x1,past_key_values.0.key:1x2x0x16"
        )
        assert inspect_bundle(bundles[weights]).to_json()["providers"] == providers
    layers = Manifest.read(bundles["fp16"]).layers
    assert [layer.form for layer in layers] == ["fp16 2:4"] * 15 + ["fp16"]  # the head stays dense


def test_dense_weights_do_not_ask_for_sparse_kernels(checkpoint: Checkpoint, tmp_path: Path) -> None:
    manifest = export_checkpoint(checkpoint("llama"), tmp_path, lowering="tensorrt")
    assert manifest.providers[TENSORRT]["trt_sparsity_enable"] == "0"
    assert manifest.weights == "fp16"  # what auto means here


def test_every_input_has_a_shape_in_every_profile(bundles: dict[str, Path]) -> None:
    graph = ir.load(bundles["fp32"] / "model.onnx").graph
    options = provider_options(graph, {"max_position_embeddings": 256}, half=True, sparse=True)[TENSORRT]
    for kind in ("min", "opt", "max"):
        shapes = dict(part.split(":") for part in options[f"trt_profile_{kind}_shapes"].split(","))
        assert list(shapes) == [value.name for value in graph.inputs]
        new, past = int(shapes["input_ids"].split("x")[1]), int(shapes["past_key_values.0.key"].split("x")[2])
        assert int(shapes["attention_mask"].split("x")[1]) == new + past


class _Ort:
    """An onnxruntime with the given providers."""

    def __init__(self, *installed: str) -> None:
        self.installed = installed

    def get_available_providers(self) -> list[str]:
        return list(self.installed)


def test_sessions_take_the_installed_providers_in_order_and_place_the_engine_cache_in_the_bundle(
    tmp_path: Path,
) -> None:
    asked = {TENSORRT: {"trt_engine_cache_path": "trt_engines", "trt_fp16_enable": "1"}, CUDA: {}}
    cpu = "CPUExecutionProvider"

    assert available_providers(_Ort(cpu), asked, tmp_path) == [cpu]
    assert available_providers(_Ort(CUDA, cpu), asked, tmp_path) == [(CUDA, {}), cpu]
    assert not (tmp_path / "trt_engines").exists()
    found = available_providers(_Ort(cpu, CUDA, TENSORRT), asked, tmp_path)
    options = {"trt_engine_cache_path": str(tmp_path / "trt_engines"), "trt_fp16_enable": "1"}
    assert found == [(TENSORRT, options), (CUDA, {}), cpu]
    assert (tmp_path / "trt_engines").is_dir()


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_auto_runs_on_plain_onnxruntime_where_a_provider_of_the_bundle_is_installed(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    assert isinstance(open_session(bundles["fp32"]), GenaiSession)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    session = open_session(bundles["fp32"], threads=1)  # onnxruntime itself leaves out what it cannot load
    assert isinstance(session, OrtSession)


def test_the_engine_s_cache_grows_by_copies(bundles: dict[str, Path]) -> None:
    config = json.loads((bundles["fp32"] / "genai_config.json").read_text())
    assert config["search"]["past_present_share_buffer"] is False


def test_an_operator_without_a_basic_form_is_named(checkpoint: Checkpoint) -> None:
    from edgeslim.exporters.graph import build_graph

    model = build_graph(checkpoint("llama"))
    next(node for node in model.graph if node.op_type == "MatMul").domain = "com.microsoft"
    with pytest.raises(ExportError, match=r"cannot write com.microsoft::MatMul .* in basic operators; try --lowering"):
        run_passes(model, [StandardOperators()])


@pytest.mark.parametrize("attribute", ["smooth_softmax", "rotary_interleaved", "something_new"])
def test_attention_that_does_more_is_refused(attribute: str, checkpoint: Checkpoint) -> None:
    from edgeslim.exporters.graph import build_graph

    model = build_graph(checkpoint("llama"))
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    node.attributes[attribute] = ir.AttrInt64(attribute, 1)
    with pytest.raises(ExportError, match=f"attention with {attribute} has no basic form here"):
        run_passes(model, [StandardOperators()])


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_integers_are_refused_with_what_it_takes(weights: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=rf"lowering tensorrt takes weights fp16, fp32, got {weights}"):
        export_checkpoint(checkpoint("llama"), tmp_path, weights=weights, lowering="tensorrt")  # type: ignore[arg-type]


def test_two_of_four_is_counted_in_whole_groups_of_each_row() -> None:
    weight = np.array([[1, 0, 2, 0, 0, 0, 0, 3], [0, 0, 1, 1, 1, 1, 0, 0]], np.float32)
    assert follows_two_of_four(weight)
    weight[0, 1] = 1
    assert not follows_two_of_four(weight)
    assert not follows_two_of_four(np.zeros((2, 6), np.float32))  # a ragged last group


def test_the_families_tested_are_families() -> None:
    assert set(MOBIUS_FAMILIES) <= set(FAMILIES)


def test_a_recurrence_without_a_basic_form_is_refused_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"a recurrence other than gated.*has no basic form; try --lowering") as fault:
        export_checkpoint(checkpoint("mamba"), tmp_path, lowering="tensorrt")
    assert "\n" not in str(fault.value)
