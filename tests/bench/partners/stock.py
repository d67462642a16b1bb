"""Bundles in the forms that stock onnxruntime runs, from a dense checkpoint, without the exporter's parity check."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import onnx_ir as ir

from edgeslim.exporters.data_file import write_data
from edgeslim.exporters.genai import genai_config
from edgeslim.exporters.graph import build_graph, read_config
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.last_logits import LastLogits
from edgeslim.exporters.passes.loop_tokens import LoopTokens
from edgeslim.exporters.passes.quantize_linears import QuantizeLinears
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.output import new_folder
from edgeslim.runtime.manifest import GENAI_CONFIG, GRAPH
from partners.dynamic_products import DynamicProducts

Passes = list[ir.passes.InPlacePass]

FORMS: Mapping[str, Callable[[], Passes]] = MappingProxyType(
    {
        "ort-fp32": lambda: [],
        "ort-int8-block32": lambda: [QuantizeLinears(8, block=32)],
        "ort-int8-block128": lambda: [QuantizeLinears(8, block=128)],
        "ort-int8-dynamic": lambda: [DynamicProducts(), QuantizeLinears(8, block=32)],  # the latter: the embedding
        "ort-int4-block32": lambda: [QuantizeLinears(4, block=32)],
        "ort-int4-block128": lambda: [QuantizeLinears(4, block=128)],
    }
)
"""Case name to the passes that give linears, head and embedding their form."""


def make_bundles(work: Path) -> None:
    """Write one bundle a form from `work`/dense into `work`/CASE; those that are there stay."""
    for case, passes in FORMS.items():
        if not (work / case).is_dir():
            with new_folder(work / case) as folder:
                _write_bundle(work / "dense", folder, passes(), prepack=case != "ort-fp32")


def _write_bundle(checkpoint: Path, folder: Path, packing: Passes, *, prepack: bool) -> None:
    """Write what onnxruntime-genai needs to generate: one graph, its data, its configurations."""
    model = build_graph(checkpoint)
    run_passes(model, [TiedEmbedding(), LastLogits(), LoopTokens(), *packing])
    write_data(model, folder)
    ir.save(model, folder / GRAPH)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    config = genai_config(model.graph, read_config(checkpoint), {}, prepack=prepack)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
