"""Write a checkpoint as a bundle: two graphs over one data file, tokenizer, configurations, manifest.

The weights go from the memory-mapped checkpoint into the data file tensor by tensor; no copy of the model is ever
held in memory.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import onnx_ir as ir

from edgeslim import __version__
from edgeslim.errors import ExportError, OutputError, did_you_mean
from edgeslim.exporters.genai import genai_config
from edgeslim.exporters.graph import build_graph, read_config
from edgeslim.exporters.layers import layer_bytes, measure_layers
from edgeslim.exporters.parity import check_parity
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.last_logits import LastLogits
from edgeslim.exporters.passes.recurrent_names import RecurrentNames
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.runtime.manifest import DATA, GENAI_CONFIG, GRAPH, SCORING, Manifest, Source, record_files, sha256

Weights = Literal["fp32", "int8", "int4"]
Progress = Callable[[str], None]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_LIBRARIES = ("mobius-onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-genai", "transformers", "torch")
_ALIGNMENT = 4096
"""Larger tensors start on a page, so that they are mapped, and kernels may load whole vectors from them."""
_ALIGN_THRESHOLD = 2048  # bytes; smaller tensors are packed densely


def export_checkpoint(
    checkpoint_dir: Path,
    bundle_dir: Path,
    *,
    weights: Weights = "fp32",
    recipe: Mapping[str, Any] | None = None,
    source: str | None = None,
    progress: Progress = lambda stage: None,
) -> Manifest:
    """Export the Hugging Face checkpoint in `checkpoint_dir` into the empty folder `bundle_dir`; return its manifest.

    `weights` is the form linear weights are stored in. `recipe` is the effective recipe of the stages before; what the
    checkpoint's config.json says under ``edgeslim`` is added to it. `source` names the checkpoint in the manifest
    (default: its folder). `progress` is called with the name of each stage.

    Raises: ExportError for a model that cannot be exported; ParityError when the finished bundle disagrees with
    transformers; OutputError when `bundle_dir` is not an empty folder.
    """
    _check_arguments(bundle_dir, weights)
    config = read_config(checkpoint_dir)
    progress("graph")
    model = build_graph(checkpoint_dir)
    run_passes(model, _passes(weights))
    progress("weights")
    sparsity = measure_layers(model.graph)
    _write_graphs(model, bundle_dir)
    _write_texts(checkpoint_dir, bundle_dir, model.graph, config, prepack=weights != "fp32")
    progress("parity")
    parity = check_parity(bundle_dir, checkpoint_dir, weights=weights)
    manifest = Manifest(
        source=Source(
            id=source or str(checkpoint_dir),
            model_type=config["model_type"],
            config_sha256=sha256(checkpoint_dir / "config.json"),
        ),
        weights=weights,
        weight_bytes=(bundle_dir / DATA).stat().st_size,
        layers=layer_bytes(model.graph, sparsity),
        files=record_files(bundle_dir),
        recipe={**config.get("edgeslim", {}), **(recipe or {})},
        versions=_versions(),
        parity=parity,
    )
    manifest.write(bundle_dir)
    return manifest


def _check_arguments(bundle_dir: Path, weights: str) -> None:
    if weights not in get_args(Weights):
        raise ExportError(f"weights must be fp32, int8 or int4, got {weights!r}{did_you_mean(weights, get_args(Weights))}")
    if not bundle_dir.is_dir() or any(bundle_dir.iterdir()):
        raise OutputError(f"{bundle_dir}: expected an existing empty folder to write the bundle into")


def _passes(weights: Weights) -> list[ir.passes.InPlacePass]:
    """Return the passes that turn mobius's graph into the scoring graph with `weights`."""
    return [RecurrentNames(), TiedEmbedding()]


def _write_graphs(model: ir.Model, bundle_dir: Path) -> None:
    """Write data file, scoring graph (all positions) and generation graph (last position); `model` becomes the latter."""
    ir.external_data.unload_from_model(
        model, bundle_dir, DATA, size_threshold_bytes=256, alignment=_ALIGNMENT, align_threshold=_ALIGN_THRESHOLD
    )
    ir.save(model, bundle_dir / SCORING)
    run_passes(model, [LastLogits()])
    ir.save(model, bundle_dir / GRAPH)


def _write_texts(
    checkpoint_dir: Path, bundle_dir: Path, graph: ir.Graph, config: Mapping[str, Any], *, prepack: bool
) -> None:
    """Write genai_config.json and copy what describes the model and its text: configurations, tokenizer, template."""
    for name in ("config.json", "generation_config.json", *_TOKENIZER_FILES):
        if (checkpoint_dir / name).is_file():
            shutil.copyfile(checkpoint_dir / name, bundle_dir / name)
    generation_path = checkpoint_dir / "generation_config.json"
    generation = json.loads(generation_path.read_text(encoding="utf-8")) if generation_path.is_file() else {}
    _write_json(bundle_dir / GENAI_CONFIG, genai_config(graph, config, generation, prepack=prepack))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    return {"edgeslim": __version__, **{name: metadata.version(name) for name in _LIBRARIES if _installed(name)}}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
