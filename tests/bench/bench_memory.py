"""Peak resident memory of pruning and exporting a random Llama of over 500 M parameters; a JSON line a case.

Every verb runs in a process of its own, which says what was resident after its imports and at its peak.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import edgeslim
from edgeslim.runtime.memory import current_rss, peak_rss

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Make the model once, then measure each verb on it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verbs", nargs="+", default=["prune", "export"])
    parser.add_argument("--method", default="mrp")
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--calib", help="calibration text (default: the bundled one)")
    parser.add_argument("--blocks", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1280, help="a multiple of 128")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        _child(json.loads(args.child))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, work = Path(folder) / "model", Path(folder)
        parameters = _random_model(model, args.blocks, args.hidden)
        file_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        prune: dict[str, Any] = {
            "method": args.method,
            "effort": args.effort,
            "samples": args.samples,
            "seqlen": 256,
            "calib": args.calib,
            "device": "cpu",
        }
        for verb in args.verbs:
            options = {
                "verb": verb,
                "model": str(model),
                "output": str(work / verb),
                **(prune if verb == "prune" else {}),
            }
            command = [sys.executable, __file__, "--child", json.dumps(options)]
            measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            share = (measured["peak_rss_bytes"] - measured["base_rss_bytes"]) / file_bytes
            case = {"verb": verb, "parameters": parameters, "file_bytes": file_bytes, **measured}
            print(json.dumps({**case, "above_imports_over_file": round(share, 3)}), flush=True)


def _child(options: dict[str, Any]) -> None:
    """Import what the verb needs, run it, and print the memory of this process."""
    verb = options.pop("verb")
    model, output = options.pop("model"), options.pop("output")
    importlib.import_module("edgeslim.pruner" if verb == "prune" else "edgeslim.exporters.bundle")
    assert importlib.import_module("transformers").AutoModelForCausalLM
    base = current_rss()
    getattr(edgeslim, verb)(model, output, **options)
    print(json.dumps({"base_rss_bytes": base, "peak_rss_bytes": peak_rss()}))


def _random_model(folder: Path, blocks: int, hidden: int) -> int:
    """Save a random model in float32 with the bundled tokenizer; return its number of parameters."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "models" / "tiny-llama")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    main()
