"""From a pruned checkpoint to packed operators: what is fused, what is chosen and why, and that the numbers stay."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from families import save_tiny
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.torch import load_file, save_file

from edgeslim.errors import ExportError
from edgeslim.exporters import export_checkpoint
from edgeslim.exporters.bundle import build_graph
from edgeslim.exporters.lowering import lower
from edgeslim.exporters.onnx_model import export_onnx
from edgeslim.exporters.packed import Form
from edgeslim.exporters.packed_nodes import Matrix, is_linear
from edgeslim.exporters.parity import sample_tokens
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.exporters.plan import Plan, make_plan
from edgeslim.runtime.bundle_library import bundle_library
from edgeslim.runtime.generate import generate
from edgeslim.runtime.library import find_library
from edgeslim.runtime.manifest import GRAPH, SCORING, Manifest
from edgeslim.runtime.session import GenaiSession, OrtSession

needs_library = pytest.mark.skipif(
    find_library() is None, reason="no kernel library: edgeslim was installed without a compiler"
)
Checkpoint = Callable[[str], Path]
FAMILIES = ("llama", "gemma2", "gpt2", "phi3", "qwen2", "mamba2")
BODY_TOLERANCE = 0.02
"""Of the largest logit: a norm in another order of sums moves single activations to the next of their 255 steps, which
random weights do not average out."""


@pytest.fixture(scope="module")
def pruned(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function from family and pattern ("half" or "2:4") to a checkpoint with that many zeros."""
    root = tmp_path_factory.mktemp("pruned")

    def made(family: str, pattern: str = "half") -> Path:
        folder = root / f"{family}-{pattern.replace(':', 'of')}"
        if not folder.is_dir():
            save_tiny(folder, family)
            tensors = load_file(folder / "model.safetensors")
            save_file({name: _prune(name, t, pattern) for name, t in tensors.items()}, folder / "model.safetensors")
        return folder

    return made


def _prune(name: str, tensor: torch.Tensor, pattern: str) -> torch.Tensor:
    if tensor.ndim != 2 or not any(part in name for part in ("proj", "mlp.c_", "attn.c_")):
        return tensor
    rows = tensor.T if "c_" in name else tensor  # GPT-2 keeps its linears as [inputs, outputs]
    if pattern == "2:4":
        order = rows.abs().reshape(len(rows), -1, 4).argsort(-1, descending=True).argsort(-1)
        kept = (rows.reshape(len(rows), -1, 4) * (order < 2)).reshape(rows.shape)
    else:
        kept = rows * (torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    return (kept.T if "c_" in name else kept).contiguous()


def exported(checkpoint: Path, folder: Path, **options: object) -> Manifest:
    folder.mkdir()
    return export_checkpoint(checkpoint, folder, **options)  # type: ignore[arg-type]


@needs_library
@pytest.mark.parametrize(
    ("weights", "family"),
    [
        *((weights, family) for weights in ("int8", "int4") for family in FAMILIES),
        ("int3", "llama"),
        ("int3", "mamba2"),
    ],
)
def test_every_family_runs_packed_by_kernels_and_by_bodies(
    family: str, weights: str, pruned: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = exported(pruned(family), tmp_path / "bundle", weights=weights)  # compares with transformers by itself

    assert manifest.lowering == "kernel"
    assert any(layer.form.startswith("bitmap") and layer.stored <= 0.52 for layer in manifest.layers)
    tokens = sample_tokens(tmp_path / "bundle")
    kernels = OrtSession(tmp_path / "bundle", graph=SCORING).feed_all(tokens)
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")
    bodies = OrtSession(tmp_path / "bundle", graph=SCORING).feed_all(tokens)
    assert np.abs(kernels - bodies).max() <= BODY_TOLERANCE * np.abs(bodies).max()


@needs_library
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_genai_generates_the_tokens_of_plain_onnxruntime_from_a_packed_bundle(
    family: str, pruned: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    exported(pruned(family), bundle, weights="int8")
    sessions = (OrtSession(bundle), GenaiSession(bundle, max_length=64))
    plain, genai = (list(generate(session, [1, 2, 3], 12)) for session in sessions)
    monkeypatch.setenv("EDGESLIM_LIBRARY", "none")  # what happens on an architecture that the bundle has no library for
    without = list(generate(GenaiSession(bundle, max_length=64), [1, 2, 3], 12))

    assert plain == genai == without


@needs_library
def test_a_llama_block_becomes_four_products_and_one_attention(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    model = lowered(pruned("llama"), make_plan("int8", "kernel", library=True), tmp_path)
    ours = [node for node in model.graph if node.domain == "edgeslim"]
    kinds = [node.op_type for node in ours]

    assert kinds == [
        "PackedGather",
        *["PackedLinear", "GroupQueryAttention", *["PackedLinear"] * 3] * 3,
        "PackedLinear",
    ]
    assert not {"MatMul", "Sigmoid", "RMSNormalization", "SkipSimplifiedLayerNormalization"} & {
        node.op_type for node in model.graph
    }
    overloads = [node.overload for node in ours if is_linear(node)]
    assert [name.removeprefix("bitmap_int8_int8") for name in overloads[:4]] == [
        "_norm",
        "_residual",
        "_norm",
        "_gate_residual",
    ]


def test_a_mamba_block_reads_its_gate_where_the_projection_left_it(tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[2] / "examples" / "models" / "tiny-mamba2"
    model = lowered(checkpoint, make_plan("int8", "kernel", library=True), tmp_path)
    linears = [node for node in model.graph if is_linear(node)]

    assert linears[1].overload.endswith("_gate_norm_residual")
    assert linears[1].inputs[6] is linears[0].outputs[0]


def lowered(checkpoint: Path, plan: Plan, folder: Path) -> ir.Model:
    model = build_graph(checkpoint)
    run_passes(model, [TiedEmbedding()])
    lower(model, plan, folder / "packed")
    return model


@pytest.mark.parametrize(
    ("kept", "bits", "form"),
    [
        (1.0, "int8", Form(layout="dense", bits=8)),
        (0.5, "int8", Form(layout="bitmap", bits=8)),
        (0.95, "int8", Form(layout="dense", bits=8)),
        (0.5, "int4", Form(layout="bitmap", bits=4, group=64)),
        (0.9, "int4", Form(layout="dense", bits=4, group=64)),
        (0.5, "int3", Form(layout="bitmap", bits=3, group=64)),
        (0.9, "int3", Form(layout="dense", bits=3, group=64)),
        (0.5, "fp16", Form(layout="bitmap", bits=16)),
    ],
)
def test_a_mask_is_used_where_it_saves_bytes(kept: float, bits: str, form: Form) -> None:
    plan = make_plan(bits, "kernel", library=True)
    assert plan.choose(*matrix(kept)).form == form


def matrix(kept: float) -> tuple[Matrix, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 256)).astype(np.float32)
    weight[rng.random(weight.shape) >= kept] = 0
    return Matrix(names=("w",), n=128, k=256, dense=lambda: weight), weight


def test_a_mask_is_not_used_where_it_was_measured_to_be_slower() -> None:
    slow = {"dense_int8": {"1": 60.0}, "bitmap_int8": {"0.2": 70.0, "0.9": 40.0}}
    plan = make_plan("int8", "auto", library=True, costs=slow)

    assert plan.choose(*matrix(0.2)).form.layout == "bitmap"
    choice = plan.choose(*matrix(0.7))
    assert choice.form.layout == "dense"
    assert "Gweights/s measured" in choice.reason


def test_at_three_bits_bytes_decide_and_the_reason_says_what_that_costs() -> None:
    slow = {"dense_int3g64": {"1": 140.0}, "bitmap_int3g64": {"0.5": 80.0}}
    choice = make_plan("int3", "auto", library=True, costs=slow).choose(*matrix(0.5))

    assert choice.form.layout == "bitmap"
    assert "bitmap_int3g64 80, dense_int3g64 140 Gweights/s measured" in choice.reason


def test_zeros_in_a_2_4_pattern_need_no_offsets(pruned: Callable[[str, str], Path], tmp_path: Path) -> None:
    manifest = exported(pruned("llama", "2:4"), tmp_path / "bundle", weights="int8", lowering="kernel")
    forms = {layer.form for layer in manifest.layers}
    assert "nm2of4_int8" in forms


def test_auto_is_dense_without_a_library_and_says_why() -> None:
    plan = make_plan("auto", "auto", library=False)
    assert (plan.weights, plan.lowering) == ("int8", "dense")
    assert "no kernel library" in plan.reason
    assert make_plan("auto", "auto", library=True).lowering == "kernel"


def test_three_bits_need_kernels_or_bodies(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = make_plan("int3", "auto", library=False)
    assert (plan.weights, plan.lowering) == ("int3", "kernel")
    assert "function bodies" in plan.reason
    with pytest.raises(ExportError, match=r"lowering dense takes weights .*, got int3: .*; the nearest is int4"):
        export_checkpoint(checkpoint("llama"), tmp_path, weights="int3", lowering="dense")


@needs_library
def test_the_embedding_and_a_head_tied_to_it_take_the_weights_that_are_asked(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    sizes = {}
    for embedding in ("auto", "int4", "fp16"):
        folder = tmp_path / embedding
        manifest = exported(checkpoint("llama"), folder, weights="int4", lowering="kernel", embedding=embedding)
        gather = next(node for node in ir.load(folder / GRAPH).graph if node.op_type == "PackedGather")
        sizes[embedding] = manifest.weight_bytes
        assert gather.attributes["bits"].value == {"auto": 8, "int4": 4, "fp16": 16}[embedding]
    assert sizes["int4"] < sizes["auto"] < sizes["fp16"]


@pytest.mark.parametrize(("weights", "lowering"), [("int4", "dense"), ("fp16", "kernel")])
def test_the_weights_of_an_embedding_are_for_packed_integers(weights: str, lowering: str) -> None:
    with pytest.raises(ExportError, match=f"embedding int4 is for lowering kernel .*, got {lowering} with {weights}"):
        make_plan(weights, lowering, library=True, embedding="int4")
    with pytest.raises(ExportError, match=r"embedding must be one of .*, got 'in4'; did you mean 'int4'"):
        make_plan(weights, lowering, library=True, embedding="in4")


def test_unknown_lowerings_and_architectures_are_refused_with_the_nearest(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    wanted = "lowering must be one of auto, kernel, gather, dense, tensorrt, got 'kernal'; did you mean"
    with pytest.raises(ExportError, match=wanted):
        export_checkpoint(checkpoint("llama"), tmp_path, lowering="kernal")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="arch 'x86-64' is not known; did you mean 'x86_64'"):
        export_checkpoint(checkpoint("llama"), tmp_path, architectures=["x86-64"])


@needs_library
def test_a_portable_bundle_has_no_library_and_needs_none(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = exported(pruned("llama"), tmp_path / "bundle", weights="int8", library=False)
    assert manifest.libraries == {}
    assert "custom_ops_library" not in (tmp_path / "bundle" / "genai_config.json").read_text()
    assert not list((tmp_path / "bundle").glob("*edgeslim.so"))
    GenaiSession(tmp_path / "bundle", max_length=32).feed(np.array([[1, 2]]))


@pytest.mark.parametrize("lowering", ["dense", "kernel"])
def test_half_precision_halves_the_file(pruned: Callable[[str], Path], tmp_path: Path, lowering: str) -> None:
    single, half = (
        exported(
            pruned("llama"), tmp_path / weights, weights=weights, lowering="dense" if weights == "fp32" else lowering
        )
        for weights in ("fp32", "fp16")
    )
    assert half.weight_bytes < 0.6 * single.weight_bytes
    assert half.parity["to_original"]["kl"] < 1e-5


@needs_library
def test_a_packed_bundle_takes_fewer_bytes_than_a_dense_one_of_the_same_weights(
    pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    packed = exported(pruned("llama"), tmp_path / "packed", weights="int8")
    dense = exported(pruned("llama"), tmp_path / "dense", weights="int8", lowering="dense")
    sizes = [sum(layer.bytes for layer in m.layers if layer.sparsity > 0.4) for m in (packed, dense)]
    assert sizes[0] < 0.72 * sizes[1]  # masks, half the values, and scales of rows of 64


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """An ONNX model made elsewhere: MatMul, bias, ReLU, Gemm, and a product of two inputs."""
    rng = np.random.default_rng(0)
    constants = {"W": (64, 96), "b": (96,), "G": (32, 96), "c": (32,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in constants.items()}
    weights["W"][rng.random(weights["W"].shape) < 0.6] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="first"),
        helper.make_node("Add", ["h", "b"], ["hb"]),
        helper.make_node("Relu", ["hb"], ["r"]),
        helper.make_node("Gemm", ["r", "G", "c"], ["g"], name="second", transB=1),
        helper.make_node("Transpose", ["g"], ["gt"], perm=[1, 0]),
        helper.make_node("MatMul", ["g", "gt"], ["y"], name="third"),
    ]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "n"])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "foreign.onnx")
    return tmp_path / "foreign.onnx"


@needs_library
def test_a_foreign_model_is_packed_the_same_way(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    manifest = export_onnx(foreign, tmp_path / "bundle", weights="int8")

    assert [(layer.name, layer.shape) for layer in manifest.layers] == [("W", (96, 64)), ("G", (32, 96))]
    assert manifest.layers[0].form == "bitmap_int8"
    assert manifest.parity["max_abs_error"]["y"] > 0
    model = ir.load(tmp_path / "bundle" / "model.onnx")
    kinds = [node.op_type for node in model.graph]
    # The bias went into the first product, ReLU into the second.
    assert kinds == ["PackedLinear", "PackedLinear", "Transpose", "MatMul"]
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    stock = onnxruntime.InferenceSession(tmp_path / "bundle" / "model.onnx").run(None, {"x": x})[0]  # by the bodies
    before = onnxruntime.InferenceSession(foreign).run(None, {"x": x})[0]
    assert np.abs(stock - before).max() < 0.05 * np.abs(before).max()


def test_what_is_no_onnx_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x00nonsense")
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ExportError, match=r"broken.onnx: not an ONNX model"):
        export_onnx(tmp_path / "broken.onnx", tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"absent.onnx: no such file"):
        export_onnx(tmp_path / "absent.onnx", tmp_path / "bundle")


@needs_library
def test_a_bundle_from_elsewhere_runs_its_bodies_and_says_so(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    exported(pruned("llama"), tmp_path / "bundle", weights="int8")
    manifest = (tmp_path / "bundle" / "edgeslim.json").read_text()
    (tmp_path / "bundle" / "edgeslim.json").write_text(manifest.replace('"x86_64": "lib', '"riscv64": "lib'))
    genai = GenaiSession(tmp_path / "bundle", max_length=32)

    assert genai.library.path is None
    assert genai.library.warning is not None and "function bodies run" in genai.library.warning
    assert bundle_library(tmp_path / "bundle").path == find_library()  # plain onnxruntime takes this installation's
    genai.feed(np.array([[1, 2]]))
