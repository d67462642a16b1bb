"""Does the native runtime, here and as an aarch64 program, give transformers' tokens for the bundled models?

    native_tokens.py FOLDER                                        exports the bundles, writes down transformers' tokens
    native_tokens.py FOLDER --ort LIBRARY --run [RUNNER…] tokens   compares what runtime/native/tests/tokens.cc writes
    native_tokens.py FOLDER --only BUNDLE … --run …                compares some of the bundles (an emulator takes long)

The bundles of tiny-llama and tiny-mamba2: dense (float32, onnxruntime's own operators), packed (half of the weights
pruned, int8), and reduced (fewer tokens of the prompt kept; float32). transformers has float32 activations and
the weights as the bundle holds them, so the packed graph runs once with float32 activations and must then give the same
tokens. As shipped it rounds activations to 8 bits: what the first program compared wrote, every other one must write.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

MODELS = Path(__file__).parents[2] / "examples" / "models"
TEXT = Path(__file__).parents[2] / "README.md"
"""Magnitudes need no statistics, but pruning asks for text."""
FAMILIES = ("llama", "mamba2")
NEW_TOKENS, PROMPTS, SHORT, LONG = 24, 4, 12, 96
EXACT = "exact-model.onnx"
"""The packed graph with float32 activations, beside the one that ships."""
WITH_ONNXRUNTIME = 4
"""EDGESLIM_WITH_ONNXRUNTIME: packed bundles also run without it."""


def main() -> int:
    """Prepare or compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ort", type=Path, help="ONNX Runtime's library, for the program")
    parser.add_argument("--only", nargs="+", metavar="BUNDLE", help="compare these bundles alone, such as llama-dense")
    parser.add_argument("--run", nargs=argparse.REMAINDER, help="the program tokens, behind what runs it")
    asked = parser.parse_args()
    if asked.run:
        return compare(asked.folder, asked.run, asked.ort, asked.only)
    prepare(asked.folder)
    return 0


def prepare(folder: Path) -> None:
    """Export every bundle below `folder` and write what is expected of it into expected.json."""
    rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    expected = {}
    for family in FAMILIES:
        for kind, make in (("dense", dense), ("packed", packed), ("reduced", reduced)):
            name = f"{family}-{kind}"
            expected[name] = make(MODELS / f"tiny-{family}", folder / name)
            print(f"{name}: exported", flush=True)
    (folder / "expected.json").write_text(json.dumps(expected))


def dense(checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """The model as it is, in float32."""
    from edgeslim.exporters import export_checkpoint

    bundle.mkdir()
    export_checkpoint(checkpoint, bundle, weights="fp32", lowering="dense")
    model = load(checkpoint)
    return case("model.onnx", prompts(model, SHORT), lambda prompt: generated(model, prompt))


def packed(checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """Half of the weights pruned, the others int8; the graph is also stored with float32 activations."""
    import edgeslim
    from edgeslim.exporters import export_checkpoint
    from edgeslim.exporters.parity import exact_graphs
    from edgeslim.exporters.plan import make_plan
    from edgeslim.exporters.reference import round_weights_

    pruned = bundle.with_name(bundle.name + "-pruned")
    edgeslim.prune(checkpoint, pruned, method="magnitude", sparsity=0.5, calib=str(TEXT), samples=2, seqlen=32)
    bundle.mkdir()
    export_checkpoint(pruned, bundle, weights="int8", lowering="kernel")
    with exact_graphs(bundle) as prefix:
        graph = (bundle / f"{prefix}model.onnx").read_bytes()
    (bundle / EXACT).write_bytes(graph)
    model, rounding = load(pruned), make_plan("int8", "kernel", library=True).rounding
    assert rounding is not None
    round_weights_(model, rounding)
    return case(EXACT, prompts(model, SHORT), lambda prompt: generated(model, prompt))


def reduced(checkpoint: Path, bundle: Path) -> dict[str, Any]:
    """A fifth of the prompt's FLOPs cut by UTRC."""
    import torch

    import edgeslim
    from edgeslim.exporters import export_checkpoint
    from edgeslim.exporters.reduction import reduction_of
    from edgeslim.tokens.prefill import generate

    planned = bundle.with_name(bundle.name + "-checkpoint")
    edgeslim.reduce(checkpoint, planned, flops=0.2)
    bundle.mkdir()
    export_checkpoint(planned, bundle, weights="fp32", lowering="dense")
    model = load(planned)
    plan = reduction_of(json.loads((planned / "config.json").read_text()), planned)

    def write(prompt: list[int]) -> list[int]:
        with torch.inference_mode():
            return [int(token) for token in generate(model, torch.tensor([prompt]), plan, NEW_TOKENS)[0]]

    return case("model.onnx", prompts(model, LONG), write)


def load(checkpoint: Path) -> Any:
    """transformers' model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def prompts(model: Any, length: int) -> list[list[int]]:
    """Random tokens of the model's vocabulary."""
    import numpy as np

    drawn = np.random.default_rng(0).integers(10, model.config.vocab_size, (PROMPTS, length))
    return [list(map(int, row)) for row in drawn]


def generated(model: Any, prompt: list[int]) -> list[int]:
    """transformers' greedy tokens after `prompt`."""
    import torch

    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
    return [int(token) for token in tokens[0, len(prompt) :]]


def case(graph: str, given: list[list[int]], write: Callable[[list[int]], list[int]]) -> dict[str, Any]:
    """What `write` says to the prompts `given`, for the graph of that name."""
    return {"graph": graph, "prompts": given, "tokens": [write(prompt) for prompt in given]}


def compare(folder: Path, program: Sequence[str], ort: Path | None, only: Sequence[str] | None = None) -> int:
    """Run `program` on every bundle, or on those of `only`; print how its tokens compare; return 1 where any differ."""
    expected = json.loads((folder / "expected.json").read_text())
    if unknown := set(only or ()) - expected.keys():
        raise SystemExit(f"{folder}: no bundle {min(unknown)}; there are {', '.join(expected)}")
    failed = 0
    for name, one in expected.items():
        if only and name not in only:
            continue
        failed += report(name, one["tokens"], written(program, folder / name, ort, one["graph"], one["prompts"]))
        if one["graph"] == EXACT:
            found = written(program, folder / name, ort, EXACT, one["prompts"], WITH_ONNXRUNTIME)
            failed += report(f"{name}, on onnxruntime", one["tokens"], found)
            shipped = written(program, folder / name, ort, "model.onnx", one["prompts"])
            first = folder / f"{name}.shipped.json"  # of the first program
            if not first.is_file():
                first.write_text(json.dumps(shipped))
            failed += report(f"{name}, int8 activations", json.loads(first.read_text()), shipped)
    return min(failed, 1)


def written(
    program: Sequence[str], bundle: Path, ort: Path | None, graph: str, given: list[list[int]], flags: int = 0
) -> list[list[int]]:
    """Return the tokens that `program` writes after the prompts `given`."""
    lines = "".join(" ".join(map(str, prompt)) + "\n" for prompt in given)
    command = [*program, str(bundle), str(ort or ""), str(NEW_TOKENS), graph, str(flags)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-500:]}")
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


def report(name: str, expected: list[list[int]], found: list[list[int]]) -> int:
    """Print how many texts are the same; return 1 where one differs."""
    same = sum(one == other for one, other in zip(expected, found, strict=True))
    print(f"{name}: {same} of {len(expected)} texts of {NEW_TOKENS} tokens are the same", flush=True)
    return int(same < len(expected))


if __name__ == "__main__":
    sys.exit(main())
