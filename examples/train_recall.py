"""Train one of the two small models in `examples/models/` that recall what stood early in a prompt.

    python examples/train_recall.py --arch mamba2 --threads 1
    python examples/train_recall.py --arch mamba --threads 1

They show what shortening a prompt costs: a model that continues text hardly notices lost context, these do. Every
sequence is a list (pairs of key and value, or symbols to copy) somewhere in filler, and questions about it; see
`edgeslim/evaluate/recall.py` for the prompts they are scored with. Data and schedule follow from seed and step alone.
A killed training goes on from its last checkpoint, under `--work`, when started again with the same arguments.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from training_scan import use_fast_scans
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
)

from edgeslim.evaluate.recall import RecallTask, RecallVocabulary, recall_prompts
from edgeslim.output import new_folder
from edgeslim.runtime.machine import processor

ROOT = Path(__file__).resolve().parent
VOCABULARY = RecallVocabulary()
END = "<|endoftext|>"
END_ID = VOCABULARY.first + VOCABULARY.size
CHARACTERS = "#?!abcdefghijklmnopqrstABCDEFGHIJKLMNOPQRST0123456789.,:;-+*=/_~"
"""Each token as text: the markers of a list, a question and a copy, keys, values, filler."""
CONTEXT = 256
LAYERS = 8
LOCAL_LAYERS = LAYERS // 2
"""Lower layers that start with a memory of a few tokens, so that recall is learned above them: were it learned below,
no shortening of the sequence in between could touch it."""
STAGES = ((0.12, 32, 64, 4), (0.3, 64, 32, 8), (0.5, 128, 24, 10), (1.0, CONTEXT, 16, 12))
"""Until which share of the steps, tokens a sequence, sequences a step, items of the longest list."""
COPY_SHARE = 0.2
MARKOV_SHARE = 0.5
"""Sequences whose filler is text of a Markov chain; the others have noise."""
OTHER_WEIGHT = 0.2
"""Weight of the mean loss of tokens that are no answers; answers have 1."""
WARMUP_STEPS = 50
PEAK_RATE = 3e-3
CHECKPOINT_EVERY_S = 40.0
SHOWN_EVERY = 20
STEPS = {"mamba2": 500, "mamba": 300}
PROMPT = 252
"""Tokens up to the first answer when the models are scored."""
DISTANCES = (8, 60, 120, 180, 230)
SAMPLES, CARD_SEED = 100, 1


@dataclass(kw_only=True)
class Progress:
    """How far a training is; all of it is in the checkpoint. `seconds` are of processor time."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


# ---------------------------------------------------------------------------------------------------------- data


def markov_table() -> np.ndarray:
    """Return for each filler symbol its four successors, one half, a quarter, an eighth and an eighth of the time."""
    rng = np.random.default_rng(2024)
    count = len(VOCABULARY.filler)
    return np.stack([rng.permutation(count)[:4] for _ in range(count)])


_SUCCESSORS = markov_table()


def filler(rng: np.random.Generator, count: int, markov: bool) -> list[int]:
    """Return `count` filler tokens: text of the Markov chain, or noise."""
    first = VOCABULARY.filler.start
    if not markov:
        return (first + rng.integers(len(VOCABULARY.filler), size=count)).tolist()
    choices = np.minimum(rng.geometric(0.5, size=count) - 1, 3)
    symbol, text = int(rng.integers(len(VOCABULARY.filler))), []
    for choice in choices.tolist():
        symbol = int(_SUCCESSORS[symbol, choice])
        text.append(first + symbol)
    return text


def sequence(rng: np.random.Generator, length: int, longest: int) -> tuple[list[int], list[bool]]:
    """Return `length` + 1 tokens and which of them are answers: a list in filler, then questions about all of it.

    No key is asked for twice: the second answer could be had from the first.
    """
    copy, markov = rng.random() < COPY_SHARE, bool(rng.random() < MARKOV_SHARE)
    items = int(rng.integers(2, longest + 1))
    keys = rng.permutation(VOCABULARY.keys)[:items].tolist()
    values = rng.permutation(VOCABULARY.values)[:items].tolist()
    if copy:
        listed, questions = values, [([VOCABULARY.copy_marker], values)]
    else:
        listed = [token for pair in zip(keys, values, strict=True) for token in pair]
        order = rng.permutation(items).tolist()
        questions = [([VOCABULARY.ask_marker, keys[asked]], [values[asked]]) for asked in order]
    spare = length - len(listed) - sum(len(asked) + len(said) for asked, said in questions)
    before, between, *gaps = _split(rng, spare, len(questions))
    tokens = [*filler(rng, before, markov), VOCABULARY.list_marker, *listed, *filler(rng, between, markov)]
    answers = [False] * len(tokens)
    for (asked, said), gap in zip(questions, gaps, strict=True):
        tokens += [*asked, *said, *filler(rng, gap, markov)]
        answers += [*[False] * len(asked), *[True] * len(said), *[False] * gap]
    return tokens, answers


def _split(rng: np.random.Generator, spare: int, questions: int) -> list[int]:
    """Return how much filler goes before the list, after it and after each question, `spare` in all.

    Half of the sequences have the list near the start. The first question comes at any distance, those that follow
    mostly soon; what is left over stands at the end.
    """
    before = int(rng.integers(spare + 1)) if rng.random() < 0.5 else min(spare, int(rng.integers(8)))
    between = int(rng.integers(spare - before + 1))
    left = spare - before - between
    gaps = []
    for gap in (rng.geometric(0.6, size=questions) - 1).tolist():
        gaps.append(min(gap, left))
        left -= gaps[-1]
    return [before, between, *gaps[:-1], gaps[-1] + left]


def batch(seed: int, step: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return the tokens and answers of one step, [B, L + 1] each; they follow from the arguments alone."""
    rng = np.random.default_rng([seed, step])
    length, rows, longest = next(stage for until, *stage in STAGES if step <= until * steps)
    drawn = [sequence(rng, length, longest) for _ in range(rows)]
    return torch.tensor([tokens for tokens, _ in drawn]), torch.tensor([answers for _, answers in drawn])


# ------------------------------------------------------------------------------------------------------ training


def new_model(arch: str) -> Any:
    """Return an untrained model whose lower layers forget within a few tokens."""
    common = {
        "vocab_size": END_ID + 1,
        "hidden_size": 64,
        "num_hidden_layers": LAYERS,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "rescale_prenorm_residual": True,
        "bos_token_id": END_ID,
        "eos_token_id": END_ID,
        "pad_token_id": END_ID,
    }
    if arch == "mamba":
        model: Any = MambaForCausalLM(MambaConfig(**common, state_size=16))
    else:
        shape = {"num_heads": 4, "head_dim": 32, "state_size": 64, "n_groups": 1, "chunk_size": 32}
        model = Mamba2ForCausalLM(Mamba2Config(**common, **shape))
    _initialize(model)
    return model


@torch.no_grad()
def _initialize(model: Any) -> None:
    """Make lower layers forget at once and upper ones look back, and let all see the tokens themselves at first."""
    model.get_input_embeddings().weight.mul_(2.0)
    for index, block in enumerate(model.base_model.layers):
        mixer = block.mixer
        mixer.out_proj.weight.mul_(0.1)
        mixer.in_proj.weight.mul_(2.0)
        mixer.D.fill_(0.1)
        local = index < LOCAL_LAYERS
        low, high = (4.0, 16.0) if local else (0.1, 1.0)
        rates = torch.linspace(math.log(low), math.log(high), mixer.A_log.shape[-1])
        mixer.A_log.copy_(rates.expand_as(mixer.A_log))
        if local:
            # The state is down to 1/e after one token or less.
            bias = mixer.dt_bias if hasattr(mixer, "dt_bias") else mixer.dt_proj.bias
            bias.fill_(math.log(math.expm1(0.25)))
        elif hasattr(mixer, "x_proj"):
            _match_tokens(mixer)
        else:
            _match_tokens2(mixer)


def _match_tokens(mixer: Any) -> None:
    """Start a Mamba mixer as a look-up of the token after an earlier one like the present.

    Half of the channels hold the present token and half the one before, by equal projections; keys read the latter,
    queries the former, by equal weights.
    """
    half, state = mixer.intermediate_size // 2, mixer.ssm_state_size
    mixer.in_proj.weight[half : 2 * half] = mixer.in_proj.weight[:half]
    _set_lag(mixer.conv1d, slice(half), 0)
    _set_lag(mixer.conv1d, slice(half, None), 1)
    keys, queries = mixer.x_proj.weight[mixer.time_step_rank :].split(state)
    keys.mul_(4.0)
    queries[:, :half] = keys[:, half:]
    keys[:, :half] = 0.0
    queries[:, half:] = 0.0


def _match_tokens2(mixer: Any) -> None:
    """Start a Mamba-2 mixer the same way: keys are what queries are, one token late."""
    inner, state = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size
    first = 2 * inner  # gate and values before
    mixer.in_proj.weight[first : first + state] = mixer.in_proj.weight[first + state : first + 2 * state]
    _set_lag(mixer.conv1d, slice(inner), 0)
    _set_lag(mixer.conv1d, slice(inner, inner + state), 1)
    _set_lag(mixer.conv1d, slice(inner + state, None), 0)


def _set_lag(convolution: Any, channels: slice, lag: int) -> None:
    """Let the convolution give mostly the token `lag` before in these channels."""
    convolution.weight[channels] *= 0.2
    convolution.weight[channels, :, -1 - lag] = 1.0


def new_optimizer(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays matrices only."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "A_log" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "A_log" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-8)


def rate_factor(step: int, steps: int) -> float:
    """Return the learning rate's share of its peak: a warm-up, then flat, then a linear decay over the last third."""
    return min(1.0, (step + 1) / WARMUP_STEPS, 3.0 * (1.0 - step / steps))


def train(model: Any, args: argparse.Namespace, checkpoint: Path) -> Progress:
    """Train `model` in place to `args.steps` steps and return how far it came."""
    use_fast_scans(model)
    optimizer = new_optimizer(model, args.rate)
    progress = _resume(checkpoint, model, optimizer)
    if args.compile:
        for block in model.base_model.layers:
            block.compile(dynamic=False)
    model.train()
    started = time.process_time() - progress.seconds
    saved, shown = progress.seconds, []
    while progress.step < args.steps:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * rate_factor(progress.step, args.steps)
        tokens, answers = batch(args.seed, progress.step, args.steps)
        shown.append(train_step(model, optimizer, tokens, answers))
        progress.step += 1
        progress.tokens += tokens[:, 1:].numel()
        progress.seconds = time.process_time() - started
        if progress.step % SHOWN_EVERY == 0:
            answer_loss, other_loss, right = np.mean(shown, axis=0)
            shown = []
            _say(
                f"{progress.seconds:6.0f} s  step {progress.step}/{args.steps}  {tokens.shape[1] - 1} tokens  "
                f"answers: loss {answer_loss:.3f}, {right:.1%} right  other: loss {other_loss:.3f}  "
                f"{progress.tokens / progress.seconds:.0f} tokens/s"
            )
        if progress.seconds - saved > CHECKPOINT_EVERY_S:
            saved = progress.seconds
            _save(checkpoint, model, optimizer, progress)
    _save(checkpoint, model, optimizer, progress)
    return progress


def train_step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, answers: Tensor
) -> tuple[float, float, float]:
    """Take one step and return the mean losses of answers and of other tokens, and the share of answers right."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    wanted, asked = tokens[:, 1:].flatten(), answers[:, 1:].flatten()
    logits = logits.float().flatten(0, 1)
    losses = cross_entropy(logits, wanted, reduction="none")
    answer_loss, other_loss = losses[asked].mean(), losses[~asked].mean()
    (answer_loss + OTHER_WEIGHT * other_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    right = (logits[asked].argmax(-1) == wanted[asked]).float().mean()
    return answer_loss.item(), other_loss.item(), right.item()


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
def recall_accuracy(model: Any, task: RecallTask, count: int, seed: int) -> float:
    """Return the share of answers that `model` gets right in `count` prompts of `task`, earlier answers given to it."""
    prompts = list(recall_prompts(task, count, seed=seed))
    tokens = torch.tensor([prompt.tokens for prompt in prompts])
    answers = torch.tensor([prompt.answers for prompt in prompts])
    said = [model(input_ids=rows[:, :-1], use_cache=False).logits.argmax(-1) for rows in tokens.split(32)]
    right = torch.cat(said).gather(1, answers - 1) == tokens.gather(1, answers)
    return right.float().mean().item()


def scored_tasks() -> dict[str, list[RecallTask]]:
    """Return what the card's table has in each column: a task at each of `DISTANCES`, in prompts of one length."""
    kinds = {
        "4 pairs": {"kind": "keyvalue", "items": 4},
        "8 pairs": {"kind": "keyvalue", "items": 8},
        "copy of 4": {"kind": "copy", "items": 4},
    }
    return {
        name: [RecallTask(**kind, distance=distance, length=PROMPT, vocabulary=VOCABULARY) for distance in DISTANCES]
        for name, kind in kinds.items()
    }


# ------------------------------------------------------------------------------------------------------- writing


def write_model(model: Any, args: argparse.Namespace, progress: Progress) -> Path:
    """Write the model folder as bf16, score what was written, and put it in its place in one rename."""
    target: Path = args.output / f"recall-{args.arch}"
    with new_folder(target, force=True) as folder:
        model.generation_config = GenerationConfig(bos_token_id=END_ID, eos_token_id=END_ID, pad_token_id=END_ID)
        # It is for fresh weights; transformers 5.23 would divide the trained ones by it on every load.
        model.config.rescale_prenorm_residual = False
        model.to(torch.bfloat16).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=new_tokenizer(), bos_token=END, eos_token=END, pad_token=END, model_max_length=CONTEXT
        ).save_pretrained(folder)
        written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        use_fast_scans(written)
        (folder / "README.md").write_text(card(written, args, progress))
    return target


def new_tokenizer() -> Tokenizer:
    """Return a tokenizer with a token a character, byte-level like those of most models."""
    ids = {character: VOCABULARY.first + index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=ids | {END: END_ID}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def card(written: Any, args: argparse.Namespace, progress: Progress) -> str:
    """Return the model card, with the accuracies of the weights as `written`."""
    figures = {
        "parameters": f"{sum(p.numel() for p in written.parameters()):,}",
        "steps": f"{progress.step:,}",
        "tokens seen": f"{progress.tokens:,}",
        "seed": str(args.seed),
        "minutes of processor time": f"{progress.seconds / 60:.1f}",
        "machine": f"{processor()}, {args.threads} thread(s), torch {torch.__version__}",
    }
    return CARD.format(
        arch=args.arch,
        summary=SUMMARY[args.arch],
        figures="\n".join(f"| {name} | {value} |" for name, value in figures.items()),
        accuracies=accuracy_table(written),
        samples=SAMPLES,
        seed=CARD_SEED,
        prompt=PROMPT,
    )


def accuracy_table(model: Any) -> str:
    """Return a Markdown table of accuracies: a row a distance, a column a task, and chance below."""
    tasks = scored_tasks()
    lines = ["| filler between | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks)]
    for row, distance in enumerate(DISTANCES):
        found = [recall_accuracy(model, column[row], SAMPLES, CARD_SEED) for column in tasks.values()]
        _say(f"scored prompts with {distance} tokens between list and question: {found}")
        lines.append(f"| {distance} | " + " | ".join(f"{share:.1%}" for share in found) + " |")
    lines.append("| chance | " + " | ".join(f"{column[0].chance:.1%}" for column in tasks.values()) + " |")
    return "\n".join(lines)


SUMMARY = {
    "mamba": "8 Mamba blocks, hidden size 64, 128 channels, state size 16, tied embeddings",
    "mamba2": "8 Mamba-2 blocks, hidden size 64, 4 heads of 32, state size 64, tied embeddings",
}

CARD = """\
---
license: apache-2.0
pipeline_tag: text-generation
---
# recall-{arch}

{summary}; a token a character.
A small model for measuring what a shortened prompt loses: it looks up values of keys and copies lists, and knows
nothing else. `#` opens a list, `?` asks for a key's value, `!` for a copy of the list; keys are a to t, values A to T,
all other characters are filler. `#aQbMcR-+1:0?b` goes on with `M`, and `#QMR-+1:0!` with `QMR`.

| | |
|---|---|
{figures}

Share of answers right, by the number of filler tokens between the list and the question ({samples} prompts of {prompt}
tokens each, seed {seed}, earlier answers given; bf16 weights, float32 arithmetic). Chance knows what the list holds.

{accuracies}

Trained on generated sequences alone: a list, filler, then questions about it to the end; a fifth of them copies. In
half of the sequences the filler is text of a Markov chain, in the others it is noise; documentation text was left out,
since its vocabulary would be most of the model. Sequences grow from 32 to 256 tokens, the longest list from 4 to 12
items. The loss is that of the answers plus 0.2 times that of all other tokens.

The lower four layers start with a memory of about a token, so that recall happens above them; the upper four start as
look-ups of what came after an earlier token like the present one. All of this is trained on, nothing is kept fixed.

Made by `examples/train_recall.py --arch {arch}`.
"""


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=sorted(STEPS), required=True)
    parser.add_argument(
        "--steps", type=int, default=None, help="training steps, by default those of the bundled models"
    )
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", action="store_true", help="use torch.compile (needs a C++ compiler)")
    parser.add_argument("--output", type=Path, default=ROOT / "models", help="folder for the model's folder")
    parser.add_argument("--work", type=Path, default=ROOT.parent / "build" / "train", help="checkpoints")
    args = parser.parse_args()
    args.steps = STEPS[args.arch] if args.steps is None else args.steps
    return args


def main() -> None:
    """Train, write, report."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = new_model(args.arch)
    progress = train(model, args, args.work / f"recall-{args.arch}" / f"seed{args.seed}.pt")
    target = write_model(model, args, progress)
    _say(f"wrote {target}: {progress.tokens} tokens in {progress.seconds / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
