"""The smallest app on each engine: onnxruntime-genai and the native runtime, both by their C interfaces.

Compiles apps/app.cc and runs it on BUNDLE, engine after engine, each time in a fresh process: seconds from the start of
the process to the first token, decoding, peak memory. Prints a JSON line an engine (medians) and the ratios. The last
tokens must be equal.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeslim.runtime import machine
from edgeslim.runtime.library import find_library
from edgeslim.runtime.native_library import onnxruntime_library

ROOT = Path(__file__).parents[2]
Sample = dict[str, Any]


def main() -> None:
    """Measure, as the arguments say."""
    args = _parser().parse_args()
    libraries = {"genai": _genai_library(), "native": args.library or find_library()}
    with tempfile.TemporaryDirectory() as folder:
        app = compile_app(Path(folder))
        samples: dict[str, list[Sample]] = {engine: [] for engine in libraries}
        for _ in range(args.rounds):
            for engine, library in libraries.items():
                samples[engine].append(run_app(app, engine, library, args))
    for engine, each in samples.items():
        print(json.dumps({"engine": engine, "bundle": str(args.bundle), "device": machine.describe(), **medians(each)}))
    if len({sample["last_token"] for each in samples.values() for sample in each}) != 1:
        sys.exit("error: the engines gave different tokens")
    genai, native = medians(samples["genai"]), medians(samples["native"])
    decode = genai["decode_ms_p50"] / native["decode_ms_p50"]
    first, peak = (native[key] / genai[key] for key in ("first_token_s", "peak_rss_bytes"))
    print(f"native / genai: decode {decode:.2f}x, first token in {first:.2f}x, peak {peak:.2f}x")


def compile_app(folder: Path) -> Path:
    """Return the compiled app, in `folder`."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        sys.exit("error: no C++ compiler")
    app = folder / "app"
    source = ROOT / "tests" / "bench" / "apps" / "app.cc"
    subprocess.run(
        [compiler, "-std=c++17", "-O2", "-I", ROOT / "runtime" / "native", source, "-o", app, "-ldl"], check=True
    )
    return app


def run_app(app: Path, engine: str, library: Path | None, args: argparse.Namespace) -> Sample:
    """Return what one fresh process on the bundle of `args` says of itself."""
    if library is None:
        sys.exit(f"error: no library of {engine} here")
    environment = {**os.environ, "ORT_LIB_PATH": str(onnxruntime_library())}  # where genai looks
    command = [app, engine, library, args.bundle, str(args.prompt_tokens), str(args.new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{engine}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout))


def medians(samples: list[Sample]) -> Sample:
    """Return the median of each number over `samples`."""
    return {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}


def _genai_library() -> Path | None:
    spec = find_spec("onnxruntime_genai")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((path for folder in folders for path in sorted(folder.glob("libonnxruntime-genai.*"))), None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--library", type=Path, help="the native runtime (default: the installed one)")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    return parser


if __name__ == "__main__":
    main()
