"""kill -9 a prune at random moments, resume it, and compare the result bit by bit with an undisturbed run.

The parent imports everything once and forks a process for every run, so that the moments fall into the work and not
into the imports.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

import edgeslim.api
import edgeslim.pruner
from edgeslim.corpus import standard_library_text

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Return 0 if every resume gave the same bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=str(ROOT / "examples" / "models" / "tiny-llama"))
    parser.add_argument("--blocks", type=int, default=4, help="prune only this many blocks of the model's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    assert transformers.AutoModelForCausalLM  # imported here, so that no child pays for it
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "calib.txt").write_text(standard_library_text("heldout").text[:100_000], encoding="utf-8")
        model = _shorter(Path(args.model), work / "model", args.blocks)
        _fork(lambda: _prune(model, work / "warm"), kill_after=None)
        started = time.monotonic()
        _fork(lambda: _prune(model, work / "whole"), kill_after=None)
        length = time.monotonic() - started
        expected = _digest(work / "whole")
        results = [_trial(model, work / "out", rng.uniform(0, length), expected) for _ in range(args.kills)]
    killed = sum(was_killed for was_killed, _ in results)
    equal = sum(same for _, same in results)
    print(
        f"{args.kills} runs of {length:.1f} s, {killed} killed before their end, {equal} bit-identical after resuming"
    )
    return 0 if equal == args.kills else 1


def _trial(model: Path, output: Path, moment: float, expected: str) -> tuple[bool, bool]:
    killed = _fork(lambda: _prune(model, output), kill_after=moment)
    if killed and not output.exists():
        _fork(lambda: _prune(model, output), kill_after=None)
    same = output.exists() and _digest(output) == expected
    print(f"kill at {moment:6.2f} s: {'bit-identical' if same else 'DIFFERENT'}", flush=True)
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(output.parent / f".{output.name}.partial", ignore_errors=True)
    return killed, same


def _prune(model: Path, output: Path) -> None:
    edgeslim.api.prune(model, output, calib=str(output.parent / "calib.txt"), samples=16, seqlen=128, device="cpu")


def _shorter(model: Path, folder: Path, blocks: int) -> Path:
    """Save the first `blocks` blocks of `model` as a checkpoint of their own."""
    config = transformers.AutoConfig.from_pretrained(model, num_hidden_layers=blocks)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, config=config)
    loaded.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def _fork(work: Callable[[], None], *, kill_after: float | None) -> bool:
    """Run `work` in a child process, kill it after so many seconds, and return whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as fault:
            print(f"child failed: {fault!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if kill_after is None and status != 0:
        raise SystemExit(f"an undisturbed run failed with status {status}")
    return os.WIFSIGNALED(status)


def _digest(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
