"""Where a token's time goes in a bundle, operator by operator, on plain onnxruntime; a JSON line an operator.

    python tests/bench/bench_operators.py BUNDLE [--prompt-tokens 128] [--new-tokens 32] [--threads 2] [--prompts]

`us_per_token` is the mean over decoded tokens of the time between begin and end of all nodes of that kind, `bytes` what
their constants take, `gb_per_s` the one over the other. The last line is the whole step as the caller sees it: what it
has above the sum is the engine's. With `--prompts` the steps are whole prompts instead: `--new-tokens` of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeslim.runtime.config import read_config
from edgeslim.runtime.manifest import GRAPH
from edgeslim.runtime.operators import ProfiledSession
from edgeslim.runtime.profiler_worker import random_prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", action="store_true", help="measure prompts, not single tokens")
    args = parser.parse_args()
    sizes = constant_bytes(args.bundle / GRAPH)
    with tempfile.TemporaryDirectory() as folder:
        steps, events = run(args, Path(folder))
    spent: dict[str, float] = defaultdict(float)
    nodes: dict[str, set[str]] = defaultdict(set)
    tokens = len(steps) * (args.prompt_tokens if args.prompts else 1)
    for event in events:
        spent[event["args"]["op_name"]] += event["dur"] / tokens
        nodes[event["args"]["op_name"]].add(event["name"].removesuffix("_kernel_time"))
    for kind, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        size = sum(sizes.get(name, 0) for name in nodes[kind])
        line = {"operator": kind, "nodes": len(nodes[kind]), "us_per_token": round(microseconds, 1), "bytes": size}
        print(json.dumps({**line, "gb_per_s": round(size / microseconds / 1e3, 1)}))
    total = {"operator": "all", "us_per_token": round(sum(spent.values()), 1)}
    print(json.dumps({**total, "step_us_p50": round(statistics.median(steps) * 1e6, 1)}))


def run(args: argparse.Namespace, folder: Path) -> tuple[list[float], list[dict[str, Any]]]:
    """Return the seconds of each decoded token and the profiler's node events of those tokens."""
    session = ProfiledSession(args.bundle, threads=args.threads, prefix=folder / "profile")
    prompt = random_prompt(read_config(args.bundle).vocab_size or 2, args.prompt_tokens)
    token = int(session.feed(prompt).argmax())
    for _ in range(3):
        token = int(session.feed(np.array([[token]])).argmax())
    steps = []
    for _ in range(args.new_tokens):
        if args.prompts:
            session.reset()
        begin = time.perf_counter()
        token = int(session.feed(prompt if args.prompts else np.array([[token]])).argmax())
        steps.append(time.perf_counter() - begin)
    events = json.loads(session.end_profiling().read_text())
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and "op_name" in event["args"]:
            runs[event["name"]].append(event)
    return steps, [event for of_node in runs.values() for event in of_node[-len(steps) :]]


def constant_bytes(graph: Path) -> dict[str, int]:
    """Return the bytes of the constants that each node of `graph` reads, by its name."""
    sizes = {}
    for node in ir.load(graph).graph:
        constants = [value.const_value for value in node.inputs if value is not None and value.is_initializer()]
        sizes[node.name or ""] = sum(tensor.nbytes for tensor in constants if tensor is not None)
    return sizes


if __name__ == "__main__":
    main()
