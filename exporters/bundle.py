"""Write a checkpoint as a bundle: two graphs over one data file, tokenizer, configurations, manifest.

The weights go from the memory-mapped checkpoint into the data file tensor by tensor; no copy of the model is ever
held in memory.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeslim import __version__
from edgeslim.errors import OutputError
from edgeslim.exporters.data_file import write_data
from edgeslim.exporters.genai import genai_config, session_options
from edgeslim.exporters.graph import build_graph, read_config
from edgeslim.exporters.grids import read_checkpoint_grids
from edgeslim.exporters.libraries import copy_libraries, find_libraries
from edgeslim.exporters.lowering import Lowered, lower, scratch_file
from edgeslim.exporters.parity import check_parity
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.drop_kept_positions import DropKeptPositions
from edgeslim.exporters.passes.last_logits import LastLogits
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.exporters.plan import Lowering, Plan, Rounding, Weights, make_plan, target_costs
from edgeslim.exporters.reduced_parity import check_reduced_parity
from edgeslim.exporters.reduction import fitting_engines, reduction_of, reduction_passes
from edgeslim.exporters.tensorrt import TWO_OF_FOUR, provider_options
from edgeslim.runtime.manifest import DATA, GENAI_CONFIG, GRAPH, SCORING, Manifest, Source, record_files, sha256
from edgeslim.tokens.plan import ReductionPlan

Progress = Callable[[str], None]
STAGES = ("graph", "weights", "parity")
"""What `progress` is called with, in this order."""

TEXTS = (
    "config.json",
    "generation_config.json",
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


def export_checkpoint(
    checkpoint_dir: Path,
    bundle_dir: Path,
    *,
    weights: Weights = "auto",
    lowering: Lowering = "auto",
    embedding: Weights = "auto",
    architectures: Sequence[str] | None = None,
    library: bool = True,
    recipe: Mapping[str, Any] | None = None,
    source: str | None = None,
    progress: Progress = lambda stage: None,
) -> Manifest:
    """Export the Hugging Face checkpoint in `checkpoint_dir` into the empty folder `bundle_dir`; return its manifest.

    `weights` is the form weights are stored in and `lowering` how products reach the target, see
    `edgeslim.exporters.lowering`. `embedding` is the form of the token embedding and of a head tied to it (auto: int8
    where `weights` are narrower, else as they are). The kernel libraries of `architectures` (None: this machine's) go
    into the bundle, unless `library` is False. `recipe` is the effective recipe of the stages before; what the
    checkpoint's config.json says under ``edgeslim`` is added to it. `source` names the checkpoint in the manifest
    (default: its folder).
    `progress` is called with each of `STAGES` as it begins.

    Raises: ExportError for a model that cannot be exported; ParityError when the finished bundle disagrees with
    transformers; OutputError when `bundle_dir` is not an empty folder.
    """
    libraries = find_libraries(architectures)
    grids = read_checkpoint_grids(checkpoint_dir)
    costs = target_costs(libraries)
    plan = make_plan(weights, lowering, library=bool(libraries), costs=costs, grids=grids, embedding=embedding)
    check_folder(bundle_dir)
    config = read_config(checkpoint_dir)
    reduction = reduction_of(config, checkpoint_dir)
    progress("graph")
    model = build_graph(checkpoint_dir)
    run_passes(model, [TiedEmbedding(), *reduction_passes(reduction, config)])
    progress("weights")
    with scratch_file(bundle_dir) as scratch:
        lowered = lower(model, plan, scratch)
        _write_graphs(model, bundle_dir)
    places = copy_libraries(libraries, bundle_dir) if lowered.uses_kernels and library else {}
    _copy_texts(checkpoint_dir, bundle_dir)
    engines = fitting_engines(reduction, model.graph)
    options = _run_options(checkpoint_dir, bundle_dir, model.graph, config, engines, plan.copies_weights, places)
    manifest = Manifest(
        source=Source(
            id=source or str(checkpoint_dir),
            model_type=config["model_type"],
            config_sha256=sha256(checkpoint_dir / "config.json"),
        ),
        weights=plan.weights,
        lowering=lowered.lowering,
        reason=plan.reason,
        weight_bytes=(bundle_dir / DATA).stat().st_size,
        layers=lowered.layers,
        libraries=places,
        engines=engines,
        session_options=options,
        providers=_providers(model.graph, config, plan, lowered),
        files=record_files(bundle_dir),
        recipe={**config.get("edgeslim", {}), **(recipe or {})},
        versions=versions(),
    )
    if options:
        manifest.write(bundle_dir)  # the sessions of the comparison read their options there
    progress("parity")
    manifest = replace(manifest, parity=_compare(bundle_dir, checkpoint_dir, reduction, plan.rounding))
    manifest.write(bundle_dir)
    return manifest


def _compare(
    bundle_dir: Path, checkpoint_dir: Path, reduction: ReductionPlan | None, rounding: Rounding | None
) -> dict[str, Any]:
    if reduction is None:
        return check_parity(bundle_dir, checkpoint_dir, rounding=rounding)
    return check_reduced_parity(bundle_dir, checkpoint_dir, reduction, rounding=rounding)


def _providers(
    graph: ir.Graph, config: Mapping[str, Any], plan: Plan, lowered: Lowered
) -> Mapping[str, Mapping[str, str]]:
    """Return the providers of onnxruntime that the bundle is for, before the CPU's, and their options."""
    if plan.lowering != "tensorrt":
        return {}
    sparse = any(layer.form.endswith(TWO_OF_FOUR) for layer in lowered.layers)
    return provider_options(graph, config, half=plan.bits == 16, sparse=sparse)


def check_folder(bundle_dir: Path) -> None:
    """Raise OutputError unless `bundle_dir` is an empty folder."""
    if not bundle_dir.is_dir() or any(bundle_dir.iterdir()):
        raise OutputError(f"{bundle_dir}: expected an existing empty folder to write the bundle into")


def _write_graphs(model: ir.Model, bundle_dir: Path) -> None:
    """Write data file, scoring graph (all positions) and generation graph (last position), which `model` becomes."""
    write_data(model, bundle_dir)
    ir.save(model, bundle_dir / SCORING)
    run_passes(model, [DropKeptPositions(), LastLogits()])
    ir.save(model, bundle_dir / GRAPH)


def _copy_texts(checkpoint_dir: Path, bundle_dir: Path) -> None:
    """Copy what describes the model and its text: configurations, tokenizer, template."""
    for name in TEXTS:
        if (checkpoint_dir / name).is_file():
            shutil.copyfile(checkpoint_dir / name, bundle_dir / name)


def _run_options(
    checkpoint_dir: Path,
    bundle_dir: Path,
    graph: ir.Graph,
    config: Mapping[str, Any],
    engines: Sequence[str],
    prepack: bool,
    libraries: Mapping[str, str],
) -> dict[str, str | bool]:
    """Write genai_config.json where onnxruntime-genai can run the bundle; else return the session options of it."""
    library = next(iter(libraries.values()), None)
    if "genai" not in engines:
        return session_options(prepack=prepack, library=library)
    path = checkpoint_dir / "generation_config.json"
    generation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(bundle_dir / GENAI_CONFIG, genai_config(graph, config, generation, prepack=prepack, library=library))
    return {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` for people to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of edgeslim and of the libraries that made a bundle."""
    return {"edgeslim": __version__, **{name: metadata.version(name) for name in _LIBRARIES if _installed(name)}}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
