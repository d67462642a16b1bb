"""The folder that an export leaves: complete, checked, each byte stored once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from families import VOCAB, add_config, save_tiny

from edgeslim.errors import BundleError, CheckpointError, ExportError, OutputError, ParityError
from edgeslim.exporters import export_checkpoint
from edgeslim.exporters.layers import layer_name
from edgeslim.exporters.parity import sample_tokens
from edgeslim.runtime.generate import generate
from edgeslim.runtime.manifest import Manifest
from edgeslim.runtime.session import GenaiSession, OrtSession

Checkpoint = Callable[[str], Path]
Bundle = Callable[..., Path]


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_bundle_holds_what_its_readers_need(bundle: Bundle) -> None:
    names = {path.name for path in bundle("llama").iterdir()}

    assert names == {
        "model.onnx",
        "scoring.onnx",
        "model.onnx.data",
        "genai_config.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "edgeslim.json",
    }


def test_the_manifest_says_what_was_done(bundle: Bundle, checkpoint: Checkpoint) -> None:
    folder = bundle("llama")
    manifest = Manifest.read(folder)

    assert manifest.source.id == str(checkpoint("llama"))
    assert manifest.source.model_type == "llama"
    assert manifest.weights == "fp32"
    assert manifest.weight_bytes == (folder / "model.onnx.data").stat().st_size
    assert {"edgeslim", "mobius-onnx", "onnxruntime"} <= set(manifest.versions)
    assert [layer.name for layer in manifest.layers][:2] == [
        "model.layers.0.self_attn.q_proj+k_proj+v_proj",
        "model.layers.0.self_attn.o_proj",
    ]
    assert manifest.layers[0].shape == (128, 64)
    assert manifest.layers[0].bytes == 128 * 64 * 4
    assert len(manifest.layers) == 3 * 5 + 1  # five linears a layer, the head
    manifest.verify(folder)


def test_reading_a_written_manifest_gives_the_same(bundle: Bundle, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle("llama"))
    manifest.write(tmp_path)

    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_verify_names_the_file_with_a_flipped_byte(bundle: Bundle, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(bundle("llama"), tmp_path / "copy"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)

    with pytest.raises(BundleError, match=f"{name}: changed since it was exported"):
        Manifest.read(folder).verify(folder)


def test_verify_names_the_file_that_is_missing_or_cut(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle("llama"), tmp_path / "copy"))
    (folder / "scoring.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"scoring.onnx: has 0 bytes"):
        Manifest.read(folder).verify(folder)
    (folder / "scoring.onnx").unlink()
    with pytest.raises(BundleError, match=r"scoring.onnx: missing"):
        Manifest.read(folder).verify(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "has format None, this edgeslim reads format 1"),
        ('{"format": 2}', "has format 2, this edgeslim reads format 1"),
        ('{"format": 1}', "damaged: KeyError: 'source'"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(BundleError, match=r"no edgeslim.json"):
        Manifest.read(tmp_path)
    (tmp_path / "edgeslim.json").write_text(content)
    with pytest.raises(BundleError, match=message):
        Manifest.read(tmp_path)


def test_a_manifest_cannot_name_files_outside_its_bundle(bundle: Bundle, tmp_path: Path) -> None:
    text = (bundle("llama") / "edgeslim.json").read_text().replace('"model.onnx"', '"../model.onnx"')
    (tmp_path / "edgeslim.json").write_text(text)
    with pytest.raises(BundleError, match="outside the bundle"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_tied_weights_are_stored_once(bundle: Bundle, family: str, weights: str) -> None:
    folder = bundle(family, weights)
    model = ir.load(folder / "model.onnx")
    places = {(t.offset, t.length) for t in _external(model)}
    stored = sum(length for _, length in places)

    # Tensors with more than VOCAB rows are the embedding's: its codes appear in two shapes, at one place.
    large = {(t.offset, t.length) for t in _external(model) if t.shape[0] == VOCAB and t.dtype != ir.DataType.INT64}
    assert len(large) == (1 if weights == "fp32" else 2)  # packed: codes and scales
    assert (folder / "model.onnx.data").stat().st_size - stored < 4096 * len(places)  # only padding beside


def test_packed_bundles_take_the_bytes_their_bits_promise(tmp_path: Path) -> None:
    sizes = {}
    checkpoint = save_tiny(
        tmp_path / "checkpoint", "llama", hidden_size=512, intermediate_size=1024, head_dim=128, tokenizer=False
    )
    for weights, bytes_a_weight in {"fp32": 4.0, "int8": 1 + 1 / 32, "int4": 0.5 + 1 / 32}.items():
        manifest = export_checkpoint(
            checkpoint,
            empty(tmp_path / weights),
            weights=weights,  # type: ignore[arg-type]
            lowering="dense",
        )
        count = sum(rows * columns for rows, columns in (layer.shape for layer in manifest.layers))
        sizes[weights] = sum(layer.bytes for layer in manifest.layers)
        assert sizes[weights] == count * bytes_a_weight
        assert manifest.weight_bytes < sizes[weights] * 1.1


def test_both_graphs_share_the_data_file(bundle: Bundle) -> None:
    folder = bundle("llama")
    graphs = [ir.load(folder / name) for name in ("model.onnx", "scoring.onnx")]
    places = [{t.name: (str(t.location), t.offset, t.length) for t in _external(graph)} for graph in graphs]

    assert places[0] == places[1]
    assert {place[0] for place in places[0].values()} == {"model.onnx.data"}
    assert sum((folder / name).stat().st_size for name in ("model.onnx", "scoring.onnx")) < 200_000


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_plain_onnxruntime_loads_and_runs_a_bundle(bundle: Bundle, family: str, weights: str) -> None:
    session = onnxruntime.InferenceSession(bundle(family, weights) / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    names = {value.name for value in session.get_inputs()}
    states = {
        value.name: np.zeros([1, *(d if isinstance(d, int) else 0 for d in value.shape[1:])], np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    logits, *present = session.run(None, {**{k: v for k, v in feeds.items() if k in names}, **states})

    assert logits.shape == (1, 1, VOCAB)
    assert len(present) == len(states)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "mamba2"])
def test_packed_bundles_agree_with_the_rounded_model(bundle: Bundle, family: str, weights: str) -> None:
    parity = Manifest.read(bundle(family, weights)).parity

    assert max(parity["max_abs_error"].values()) <= 1e-5  # float32 activations: sums in another order
    assert max(parity["shipped_max_abs_error"].values()) <= 0.1 * parity["logit_scale"]  # 8-bit activations
    assert parity["to_original"]["kl"] < (0.01 if weights == "int8" else 0.5)


@pytest.mark.parametrize("family", ["llama", "mamba2"])
def test_both_engines_give_the_same_tokens_from_packed_weights(bundle: Bundle, family: str) -> None:
    folder = bundle(family, "int4")
    prompt = sample_tokens(folder)[0].tolist()

    assert list(generate(GenaiSession(folder, threads=1), prompt, 24)) == list(
        generate(OrtSession(folder, threads=1), prompt, 24)
    )


def test_sparsity_is_reported_by_layer(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:, ::2] = 0
    save_file({k: v.contiguous() for k, v in weights.items()}, checkpoint / "model.safetensors", {"format": "pt"})
    assert torch.count_nonzero(weights["model.layers.1.mlp.down_proj.weight"]) == 64 * 48
    manifest = export_checkpoint(checkpoint, empty(tmp_path / "bundle"))
    sparsity = {layer.name: layer.sparsity for layer in manifest.layers}

    assert sparsity.pop("model.layers.1.mlp.down_proj") == 0.5
    assert set(sparsity.values()) == {0.0}


def test_the_recipe_of_earlier_stages_is_kept(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    add_config(checkpoint, edgeslim={"prune": {"method": "mrp", "sparsity": 0.5}})
    manifest = export_checkpoint(
        checkpoint, empty(tmp_path / "bundle"), recipe={"export": {"weights": "fp32"}}, source="me/model"
    )

    assert manifest.recipe == {"prune": {"method": "mrp", "sparsity": 0.5}, "export": {"weights": "fp32"}}
    assert manifest.source.id == "me/model"


def test_every_end_of_text_token_is_listed(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama", tokenizer=False)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    export_checkpoint(checkpoint, empty(tmp_path / "bundle"))
    model = json.loads((tmp_path / "bundle" / "genai_config.json").read_text())["model"]

    assert model["eos_token_id"] == [2, 7]
    assert model["context_length"] == 256


def test_a_truncated_weight_file_is_refused_in_one_line(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor '\S+' reaches beyond the file's end"):
        export_checkpoint(checkpoint, empty(tmp_path / "bundle"))


def test_a_config_without_a_model_type_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "model_type"}))

    with pytest.raises(ExportError, match=r"config\.json names no model_type"):
        export_checkpoint(checkpoint, empty(tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("found", "hint"),
    [("lama", "did you mean 'llama'"), ("mamba22", "did you mean 'mamba2'"), ("bert", "expected one of")],
)
def test_other_families_are_refused_with_the_nearest(tmp_path: Path, found: str, hint: str) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    add_config(checkpoint, model_type=found)

    with pytest.raises(ExportError, match=f"model type '{found}' cannot be exported.*gemma2.*gpt2.*mamba2") as fault:
        export_checkpoint(checkpoint, empty(tmp_path / "bundle"))
    assert hint in str(fault.value)
    assert not any((tmp_path / "bundle").iterdir())


def test_missing_and_misshapen_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    weights = load_file(checkpoint / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"lacks 1 tensors of the graph: model\.norm\.weight"):
        export_checkpoint(checkpoint, empty(tmp_path / "a"))
    save_file({**weights, "model.norm.weight": norm[:-1].clone()}, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=r"weights do not fit config.json: .*model.norm.weight"):
        export_checkpoint(checkpoint, empty(tmp_path / "b"))


def test_an_index_cannot_lead_outside_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(ExportError, match="outside the checkpoint"):
        export_checkpoint(checkpoint, empty(tmp_path / "bundle"))


def test_a_graph_that_disagrees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeslim.exporters import bundle as module

    checkpoint = save_tiny(tmp_path / "checkpoint", "llama")
    monkeypatch.setattr(module, "build_graph", lambda folder: _perturbed(folder))

    with pytest.raises(ParityError, match="prompt fed in the way 'whole' differ from transformers' by"):
        export_checkpoint(checkpoint, empty(tmp_path / "bundle"))


def test_only_an_empty_folder_is_written_into(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(OutputError, match="existing empty folder"):
        export_checkpoint(checkpoint("llama"), tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="existing empty folder"):
        export_checkpoint(checkpoint("llama"), tmp_path)


def test_unknown_weights_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match=r"weights must be one of auto, .*got 'int5'; did you mean"):
        export_checkpoint(checkpoint("llama"), tmp_path, weights="int5")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("initializer", "name"),
    [
        ("model.layers.0.mlp.up_proj.weight_t", "model.layers.0.mlp.up_proj"),
        ("a.q_proj.weight_t__a.k_proj.weight_t__axis_1__concat", "a.q_proj+k_proj"),
        ("a.q_proj.weight__a.k_proj.weight__axis_0__concat_t", "a.q_proj+k_proj"),
        ("lm_head.weight", "lm_head"),
        ("something_else", "something_else"),
    ],
)
def test_linears_are_named_as_in_the_checkpoint(initializer: str, name: str) -> None:
    assert layer_name(initializer) == name


def test_importing_the_package_loads_neither_torch_nor_mobius() -> None:
    code = "import sys, edgeslim.exporters, edgeslim.runtime.manifest; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {"torch", "mobius", "onnx_ir", "transformers"}.isdisjoint(loaded)


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def _perturbed(folder: Path) -> ir.Model:
    from edgeslim.exporters.graph import build_graph

    model = build_graph(folder)
    norm = model.graph.initializers["model.norm.weight"]
    assert norm.const_value is not None
    norm.const_value = ir.tensor(norm.const_value.numpy() * np.float32(1.01), name=norm.name)
    return model
