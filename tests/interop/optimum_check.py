"""Does optimum's ORTModelForCausalLM load a Llama bundle and generate what transformers generates?

optimum-onnx pins transformers < 4.58 and cannot share an environment with edgeslim. So this script runs in edgeslim's
environment and starts itself once more under the interpreter of another one:

    python3 -m venv build/optimum-venv
    build/optimum-venv/bin/pip install torch==2.13.0 "optimum-onnx[onnxruntime]" "transformers<4.58"
    .venv/bin/python tests/interop/optimum_check.py build/optimum-venv/bin/python [CHECKPOINT]

CHECKPOINT is a Llama checkpoint (default: a tiny random one). Prints one line a kind of weights; exit code 1 on a
difference.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

NEW_TOKENS = 48
PROMPTS = ([5, 9, 17, 33, 65], [7], list(range(40, 60)))


def main(python: str, checkpoint: str | None = None) -> int:
    """Export, generate with transformers here and with optimum there, compare; return the exit code."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from families import save_tiny

    from edgeslim.exporters import export_checkpoint
    from edgeslim.runtime.manifest import Manifest

    failed = False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(checkpoint) if checkpoint else save_tiny(Path(folder) / "checkpoint", "llama")
        expected = tokens_of_transformers(source)
        for weights in ("fp32", "int8", "int4"):
            bundle = Path(folder) / weights
            bundle.mkdir()
            manifest: Manifest = export_checkpoint(source, bundle, weights=weights)  # type: ignore[arg-type]
            wanted = expected if weights == "fp32" else tokens_of_bundle(bundle)
            answer = subprocess.run(
                [python, __file__, "--load", str(bundle)], capture_output=True, text=True, env=offline(), check=False
            )
            same = answer.returncode == 0 and json.loads(answer.stdout.splitlines()[-1]) == wanted
            reference = "transformers" if weights == "fp32" else "onnxruntime"
            print(f"{weights}: {'the same tokens as' if same else 'DIFFERS from'} {reference} ({manifest.source.id})")
            if not same:
                print(answer.stderr[-2000:], file=sys.stderr)
            failed |= not same
    return int(failed)


def tokens_of_transformers(checkpoint: Path) -> list[list[int]]:
    """Greedy tokens after each prompt by transformers, in edgeslim's environment."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return [_generate(model, prompt) for prompt in PROMPTS]


def tokens_of_bundle(bundle: Path) -> list[list[int]]:
    """Greedy tokens after each prompt by plain onnxruntime: what packed weights are to give in any engine."""
    from edgeslim.runtime.generate import generate
    from edgeslim.runtime.session import OrtSession

    return [list(generate(OrtSession(bundle), prompt, NEW_TOKENS)) for prompt in PROMPTS]


def load(bundle: str) -> None:
    """Print as JSON the greedy tokens after each prompt by optimum, in optimum's environment."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(bundle)
    print(json.dumps([_generate(model, prompt) for prompt in PROMPTS]))


def _generate(model: object, prompt: list[int]) -> list[int]:
    import torch

    ids = model.generate(  # type: ignore[attr-defined]
        torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(i) for i in ids[0, len(prompt) :]]


def offline() -> dict[str, str]:
    """The environment without network, and without edgeslim's import path."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}


if __name__ == "__main__":
    if sys.argv[1] == "--load":
        load(sys.argv[2])
    else:
        sys.exit(main(*sys.argv[1:]))
