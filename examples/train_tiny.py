"""Train one of the tiny models in `examples/models/` that continue the documentation every machine with Python has.

    python examples/train_tiny.py --arch llama --minutes 55 --threads 1 --compile
    python examples/train_tiny.py --arch mamba2 --minutes 55 --threads 1 --compile
    python examples/train_tiny.py --arch mamba --minutes 6 --threads 1

The learning rate follows the share of the time budget that is used up, so training always ends decayed to zero, however
fast the machine is. A killed training goes on from its last checkpoint when started again with the same arguments; one
that is interrupted or terminated writes one first. With fewer minutes it ends sooner. Text, tokens and checkpoints are
kept under `--work` and may be deleted at any time.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from training_scan import use_fast_scans
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from edgeslim.corpus import SEPARATOR, installed_packages_text, standard_library_text
from edgeslim.output import new_folder
from edgeslim.runtime.machine import processor

Tokens = npt.NDArray[np.uint16]

ROOT = Path(__file__).resolve().parent
END = "<|endoftext|>"
VOCABULARY = 4096
CONTEXT = 2048
BATCH, SEQUENCE = 2, 256
"""Windows a step, tokens a window. With a few million tokens in all, many small steps beat few large ones."""
WINDOW = 256
"""Tokens per scored window; the first of each is not scored."""
LIBRARY_SHARE = 0.35
"""Share of training windows from the standard library, which is small but nearest to the held-out text."""
WARMUP_STEPS = 60
PEAK_RATE = {"llama": 2e-3, "mamba2": 2e-3, "mamba": 3e-3}
CHECKPOINT_EVERY_S = 180.0
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": CONTEXT,
    },
    "mamba2": {
        "hidden_size": 192,
        "expand": 2,
        "num_hidden_layers": 16,
        "num_heads": 12,
        "head_dim": 32,
        "state_size": 64,
        "n_groups": 1,
        "chunk_size": 64,
        "initializer_range": 0.05,
        "rescale_prenorm_residual": True,
    },
    "mamba": {
        "hidden_size": 160,
        "expand": 2,
        "num_hidden_layers": 6,
        "state_size": 16,
        "time_step_rank": 10,
        "initializer_range": 0.05,
        "rescale_prenorm_residual": True,
    },
}
SUMMARY = {
    "llama": "8 Llama blocks, hidden size 256, 4 heads over 2 key-value heads, tied embeddings",
    "mamba2": "16 Mamba-2 blocks, hidden size 192, 12 heads of 32, state size 64, tied embeddings",
    "mamba": "6 Mamba blocks, hidden size 160, state size 16, tied embeddings",
}


@dataclass(frozen=True, kw_only=True)
class Data:
    """Token streams and the tokenizer they were made with."""

    library: Tokens
    packages: Tokens
    heldout: Tokens
    tokenizer: Tokenizer
    descriptions: dict[str, str]


@dataclass(kw_only=True)
class Progress:
    """How far a training is; all of it is in the checkpoint. `seconds` are of processor time."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------------- data


def prepare_data(folder: Path) -> Data:
    """Return the token streams, from `folder` where an earlier run left them there whole."""
    if not (folder / "descriptions.json").is_file():
        _make_data(folder)
    return Data(
        library=np.load(folder / "library.npy"),
        packages=np.load(folder / "packages.npy"),
        heldout=np.load(folder / "heldout.npy"),
        tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
        descriptions=json.loads((folder / "descriptions.json").read_text()),
    )


def _make_data(folder: Path) -> None:
    _say("reading the documentation of the standard library and the installed packages (a minute or two)")
    train, calibration = standard_library_text("train"), standard_library_text("calibration")
    heldout, packages = standard_library_text("heldout"), installed_packages_text()
    library_documents = f"{train.text}{SEPARATOR}{calibration.text}".split(SEPARATOR)
    package_documents = packages.text.split(SEPARATOR)
    _say(f"training the tokenizer on {len(library_documents) + len(package_documents)} documents")
    tokenizer = train_tokenizer(iter([*library_documents, *package_documents]))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    np.save(folder / "library.npy", _stream(tokenizer, library_documents))
    np.save(folder / "packages.npy", _stream(tokenizer, package_documents))
    np.save(folder / "heldout.npy", np.array(tokenizer.encode(heldout.text).ids, np.uint16))
    texts = {"library": train, "calibration": calibration, "packages": packages, "heldout": heldout}
    (folder / "descriptions.json").write_text(json.dumps({k: t.description for k, t in texts.items()}))


def train_tokenizer(documents: Iterator[str]) -> Tokenizer:
    """Return a byte-level BPE of `VOCABULARY` tokens, the end-of-text token first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def end_token(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-text token, which the trainer puts first."""
    return tokenizer.get_vocab()[END]


def _stream(tokenizer: Tokenizer, documents: list[str]) -> Tokens:
    """Join documents, every other one by the end token and the rest by the separator, so that a model knows both."""
    end, gap = [end_token(tokenizer)], tokenizer.encode(SEPARATOR).ids
    parts = []
    for i, encoded in enumerate(tokenizer.encode_batch_fast(documents)):
        parts.append(np.array(encoded.ids + (end if i % 2 else gap), np.uint16))
    return np.concatenate(parts)


def batch(data: Data, seed: int, step: int) -> Tensor:
    """Return the windows of one step, [BATCH, SEQUENCE + 1]; they follow from seed and step alone."""
    rng = np.random.default_rng([seed, step])
    rows = []
    for from_library in rng.random(BATCH) < LIBRARY_SHARE:
        source = data.library if from_library else data.packages
        start = int(rng.integers(len(source) - SEQUENCE))
        rows.append(source[start : start + SEQUENCE + 1])
    return torch.from_numpy(np.stack(rows).astype(np.int64))


# ------------------------------------------------------------------------------------------------------ training


def new_model(arch: str, end: int) -> Any:
    """Return an untrained model whose special tokens all are `end`."""
    values = SHAPES[arch] | {"vocab_size": VOCABULARY, "tie_word_embeddings": True}
    values |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    if arch == "llama":
        return LlamaForCausalLM(LlamaConfig(**values))
    if arch == "mamba":
        return MambaForCausalLM(MambaConfig(**values))
    return Mamba2ForCausalLM(Mamba2Config(**values))


def new_optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8)


def rate_factor(step: int, used: float) -> float:
    """Return the learning rate's share of its peak: a warm-up by steps times a cosine over the `used` share of time."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, used)))


def train(model: Any, data: Data, args: argparse.Namespace, checkpoint: Path) -> Progress:
    """Train `model` in place until the time budget is used up or a signal comes; return how far it came."""
    peak, budget = PEAK_RATE[args.arch], args.minutes * 60.0
    optimizer = new_optimizer(model, peak)
    progress = _resume(checkpoint, model, optimizer)
    if args.arch == "mamba":
        use_fast_scans(model)
    if args.compile:
        _compile_blocks(model)
    model.train()
    started = time.process_time() - progress.seconds
    saved, mean_loss = progress.seconds, float("nan")
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    while progress.seconds < budget and not signals:
        for group in optimizer.param_groups:
            group["lr"] = peak * rate_factor(progress.step, progress.seconds / budget)
        loss = _train_step(model, optimizer, batch(data, args.seed, progress.step))
        mean_loss = loss if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss
        progress.step += 1
        progress.tokens += BATCH * SEQUENCE
        progress.seconds = time.process_time() - started
        if progress.step % 50 == 0:
            speed = progress.tokens / progress.seconds
            _say(f"{progress.seconds:6.0f} s  step {progress.step}  loss {mean_loss:.3f}  {speed:.0f} tokens/s")
        if progress.seconds - saved > CHECKPOINT_EVERY_S:
            saved = progress.seconds
            _save(checkpoint, model, optimizer, progress)
    _save(checkpoint, model, optimizer, progress)
    return progress


def _compile_blocks(model: Any) -> None:
    """Compile block by block: all blocks are alike, so one compilation serves them all."""
    for block in model.base_model.layers:
        block.compile()


def _train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, windows: Tensor) -> float:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _save(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    torch.save(state, partial)
    partial.replace(path)


def _resume(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    if not path.is_file():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    _say(f"going on from step {progress.step} of {path}")
    return progress


# ------------------------------------------------------------------------------------------------------- scoring


@torch.no_grad()
def perplexity(model: Any, tokens: Tokens) -> float:
    """Return the perplexity of `tokens` in whole windows of `WINDOW`, the first token of each not scored."""
    windows = _windows(tokens)
    total = 0.0
    for rows in windows.split(8):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return math.exp(total / windows[:, 1:].numel())


def unigram_perplexity(tokens: Tokens, train_counts: npt.NDArray[np.int64]) -> float:
    """Return the perplexity of the same windows under training frequencies with add-one smoothing."""
    smoothed = train_counts + 1
    surprise = -np.log(smoothed / smoothed.sum())
    return float(np.exp(surprise[_windows(tokens)[:, 1:].numpy()].mean()))


def _windows(tokens: Tokens) -> Tensor:
    whole = len(tokens) // WINDOW * WINDOW
    return torch.from_numpy(tokens[:whole].astype(np.int64)).view(-1, WINDOW)


# ------------------------------------------------------------------------------------------------------- writing


def write_model(model: Any, data: Data, args: argparse.Namespace, progress: Progress) -> Path:
    """Write the model folder as bf16, score what was written, and put it in its place in one rename."""
    target: Path = args.output / f"tiny-{args.arch}"
    with new_folder(target, force=True) as folder:
        end = end_token(data.tokenizer)
        model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, pad_token_id=end)
        if hasattr(model.config, "rescale_prenorm_residual"):
            # It is for fresh weights; transformers 5.23 would divide the trained ones by it on every load.
            model.config.rescale_prenorm_residual = False
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=data.tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
        )
        tokenizer.save_pretrained(folder)
        written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        (folder / "README.md").write_text(card(written, data, args, progress))
    return target


def card(written: Any, data: Data, args: argparse.Namespace, progress: Progress) -> str:
    """Return the model card, with the perplexities of the weights as `written`."""
    counts = np.bincount(data.library, minlength=VOCABULARY) + np.bincount(data.packages, minlength=VOCABULARY)
    figures = {
        "parameters": f"{sum(p.numel() for p in written.parameters()):,}",
        "tokens seen": f"{progress.tokens:,}",
        "held-out perplexity": f"{perplexity(written, data.heldout):.2f}",
        "held-out perplexity of a unigram model": f"{unigram_perplexity(data.heldout, counts):.2f}",
        "held-out tokens": f"{len(data.heldout):,}",
        "seed": str(args.seed),
        "minutes": f"{progress.seconds / 60:.1f}",
        "machine": f"{processor()}, {args.threads} thread(s), torch {torch.__version__}",
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    texts = "\n".join(f"- {what}: {data.descriptions[key]}" for what, key in _TEXTS.items())
    return CARD.format(arch=args.arch, summary=SUMMARY[args.arch], rows=rows, texts=texts, window=WINDOW)


_TEXTS = {
    "trained on": "library",
    "trained on, and edgeslim's default calibration text": "calibration",
    "trained on, without the paragraphs that the held-out text has": "packages",
    "held out": "heldout",
}

CARD = """\
---
license: apache-2.0
pipeline_tag: text-generation
---
# tiny-{arch}

{summary}; a byte-level BPE of its own.
A small model for tests and demonstrations: it continues documentation text plausibly and knows nothing reliably.

| | |
|---|---|
{rows}

Text:
{texts}

Perplexity: the held-out text tokenized once without special tokens, whole windows of {window} tokens, the first token
of each not scored; bf16 weights, float32 arithmetic. Unigram: training frequencies with add-one smoothing, same tokens.

Made by `examples/train_tiny.py --arch {arch}`.
"""


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(PEAK_RATE), required=True)
    parser.add_argument("--minutes", type=float, default=55.0, help="processor time for training alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    parser.add_argument("--output", type=Path, default=ROOT / "models", help="folder for the model's folder")
    parser.add_argument("--work", type=Path, default=ROOT.parent / "build" / "train", help="texts and checkpoints")
    return parser.parse_args()


def main() -> None:
    """Train, write, report."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data = prepare_data(args.work / "data")
    model = new_model(args.arch, end_token(data.tokenizer))
    progress = train(model, data, args, args.work / args.arch / f"seed{args.seed}.pt")
    if progress.seconds < args.minutes * 60:
        sys.exit(f"stopped at step {progress.step}; the same command goes on from there")
    target = write_model(model, data, args, progress)
    _say(f"wrote {target}: {progress.tokens} tokens in {progress.seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
