"""Speed of block-column sparsity on stock onnxruntime, no library of ours: `--lowering gather` beside the dense graph.

``prepare`` writes, under --work, a checkpoint of random weights in which every block of --rows outputs of a decoder
linear reads a random half of the inputs, and its bundles: gathered, and dense with and without the copies that
onnxruntime makes of weights (session.disable_prepacking), the faster of which is the partner; ``dense-conv`` is the
dense graph with its products written as 1 x 1 convolutions, the operator that the gathered graph uses. Parity is not
checked here. ``run`` measures each bundle in a fresh process, all in turn, round after round, and prints a JSON line a
case (medians over the undisturbed rounds and their spread), a table, and the ratios to the faster dense bundle.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from partners.cases import Case, Job, Sample
from partners.checkpoints import SHAPES
from partners.tables import markdown, summarise
from transformers import AutoConfig, AutoModelForCausalLM

from edgeslim.exporters.data_file import write_data
from edgeslim.exporters.genai import genai_config
from edgeslim.exporters.graph import build_graph, read_config
from edgeslim.exporters.lowering import lower
from edgeslim.exporters.passes import run_passes
from edgeslim.exporters.passes.gather_linears import GatherLinears, fits
from edgeslim.exporters.passes.last_logits import LastLogits
from edgeslim.exporters.passes.tied_embedding import TiedEmbedding
from edgeslim.exporters.plan import make_plan
from edgeslim.exporters.row_blocks import BlockPattern, RowBlock
from edgeslim.output import new_folder
from edgeslim.runtime import machine
from edgeslim.runtime.manifest import GENAI_CONFIG, GRAPH

LLAMAS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "362m": SHAPES["llama"],
        "hidden2048": {
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 6,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    }
)
"""Fields of config.json: the Llama of the partners' table, and six of the 22 layers of a Llama of 1.1 B parameters."""

CASES: Mapping[str, tuple[str, bool]] = MappingProxyType(
    {
        "dense": ("dense", True),
        "dense-mapped": ("dense", False),
        "dense-conv": ("conv", True),
        "gather": ("gather", True),
        "gather-mapped": ("gather", False),
    }
)
"""Case name to its lowering, and whether onnxruntime may copy the weights of products into a layout of its own."""

PARTNERS = ("dense", "dense-mapped")
_MODEL = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"


def main() -> None:
    """Prepare or run, as the arguments say."""
    args = _parser().parse_args()
    work = args.work or Path("/tmp/gather") / f"{args.shape}-{args.rows}"
    if args.verb == "prepare":
        return prepare(args.shape, args.rows, args.sparsity, work, args.cases)
    job = Job(prompt_tokens=args.prompt_tokens, new_tokens=args.new_tokens, threads=args.threads, repeats=args.repeats)
    cases = [Case(name=name, path=work / name) for name in args.cases]
    report(args.shape, args.rows, job, run(cases, job, args.rounds), args.output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("prepare", "run"))
    parser.add_argument("--shape", choices=LLAMAS, default="362m")
    parser.add_argument("--rows", type=int, default=320, help="outputs of a block")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--work", type=Path, help="folder of the prepared files (default: /tmp/gather/SHAPE-ROWS)")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[*CASES], help="comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="generations in each process")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the summaries")
    return parser


def prepare(shape: str, rows: int, sparsity: float, work: Path, cases: list[str]) -> None:
    """Write checkpoint and bundles of `shape` into `work`; those that are there stay."""
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint"
    if not checkpoint.is_dir():
        with new_folder(checkpoint, force=False) as folder:
            _save_checkpoint(LLAMAS[shape], rows, sparsity, folder)
    for case in cases:
        if not (work / case).is_dir():
            with new_folder(work / case, force=False) as folder:
                _write_bundle(checkpoint, folder, *CASES[case])


def _save_checkpoint(fields: Mapping[str, Any], rows: int, sparsity: float, folder: Path) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", bos_token_id=1, eos_token_id=2, pad_token_id=0, **fields)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            prune_blocks_(module.weight.data, rows, sparsity)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(_MODEL / name, folder / name)


def prune_blocks_(weight: torch.Tensor, rows: int, sparsity: float) -> None:
    """Zero a random share of the inputs of each block of `rows` rows of `weight` [out, in], in place."""
    for block in weight.split(rows):
        block[:, torch.randperm(weight.shape[1])[: int(sparsity * weight.shape[1])]] = 0


def _write_bundle(checkpoint: Path, folder: Path, lowering: str, prepack: bool) -> None:
    """Write what onnxruntime-genai needs to generate: one graph, its data, its configurations."""
    model = build_graph(checkpoint)
    run_passes(model, [TiedEmbedding(), LastLogits()])
    if lowering == "conv":
        run_passes(model, [GatherLinears({node.name or "": _whole(node) for node in model.graph if fits(node)})])
    else:
        lower(model, make_plan("fp32", lowering, library=False), folder / "unused")
    write_data(model, folder)
    ir.save(model, folder / GRAPH)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, folder / name)
    config = genai_config(model.graph, read_config(checkpoint), {}, prepack=prepack)
    (folder / GENAI_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _whole(node: ir.Node) -> BlockPattern:
    """Return the pattern of one block that reads every input, for the product `node`."""
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    n, k = weight.shape.numpy() if node.attributes.get_int("transB", 0) else weight.shape.numpy()[::-1]
    return BlockPattern(rows=n, inputs=k, blocks=(RowBlock(start=0, stop=n, columns=np.arange(k)),))


def run(cases: list[Case], job: Job, rounds: int) -> dict[str, list[Sample]]:
    """Return `rounds` samples of each case; every round measures all cases, each time beginning with another."""
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    for number in range(rounds):
        first = number % len(cases)
        for case in cases[first:] + cases[:first]:
            sample = case.measure(job)
            samples[case.name].append(sample)
            speeds = f"decode {sample.decode_tok_s:.1f}, prefill {sample.prefill_tok_s:.0f} tok/s"
            print(f"round {number + 1} {case.name}: {speeds}{', busy' * sample.busy}", file=sys.stderr, flush=True)
    return samples


def report(shape: str, rows: int, job: Job, samples: dict[str, list[Sample]], output: Path | None) -> None:
    """Print a JSON line a case, the table, and each case's ratio to the faster dense bundle, decode and prefill."""
    cases = [summarise(name, found) for name, found in samples.items()]
    about = {"shape": shape, "rows": rows, **vars(job), "device": machine.describe(), "isa": machine.isa()}
    for case in cases:
        print(json.dumps({**about, **case}))
    print(f"\nLlama {shape}, block:{rows}, {about['device']}, {about['isa']}, {job.threads} threads\n")
    print(markdown(cases))
    for figure in ("decode_tok_s", "prefill_tok_s"):
        best = max(case[figure] for case in cases if case["case"] in PARTNERS)
        print(figure, {case["case"]: round(case[figure] / best, 2) for case in cases})
    if output:
        output.write_text(json.dumps({**about, "cases": cases}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
