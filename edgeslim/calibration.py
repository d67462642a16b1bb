"""Calibration text to token batches.

Sources: a text file, a folder of text files, JSONL with a `text` field, a Hugging Face dataset id, or by default
the documentation of Python's own standard library, which every machine has.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from edgeslim.errors import CalibrationError, first_line

_DATASET_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+){0,2}$")
_TEXT_SUFFIXES = {".txt", ".md", ".rst", ".jsonl"}
_LIMIT = 64_000_000  # characters; more is not read, and the description says so


@dataclass(frozen=True, kw_only=True)
class CalibrationText:
    """Text to calibrate on, and what to call it in reports."""

    text: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Token windows, int64 [samples, seqlen], and a description of the text that they come from."""

    tokens: torch.Tensor
    description: str


def read_text(source: str | None) -> CalibrationText:
    """Return the text that `source` names; None is the bundled default.

    `source`: a file (`.jsonl`: one object a line with `text`), a folder of such files, or a dataset id
    `owner/name[:config][:split]`.

    Raises: CalibrationError where there is none, or it is empty.
    """
    if source is None:
        from edgeslim.corpus import standard_library_text

        default = standard_library_text("calibration")
        return CalibrationText(text=default.text, description=default.description)
    path = Path(source)
    if path.is_dir():
        text = _read_folder(path)
    elif path.is_file():
        text = _read_file(path)
    elif _DATASET_ID.match(source):
        text = _read_dataset(source)
    else:
        raise CalibrationError(
            f"{source}: no such file or folder; expected text, JSONL, a folder or a dataset id owner/name"
        )
    if not text.strip():
        raise CalibrationError(f"{source}: holds no text")
    cut = f", first {_LIMIT:,} characters" if len(text) > _LIMIT else ""
    text = text[:_LIMIT]
    digest = hashlib.sha256(text.encode()).hexdigest()
    return CalibrationText(text=text, description=f"{source} ({len(text):,} characters{cut}, sha256 {digest[:12]})")


def sample_windows(text: CalibrationText, tokenizer: Any, *, samples: int, seqlen: int, seed: int) -> Calibration:
    """Return `samples` windows of `seqlen` tokens at random offsets drawn from `seed`.

    Raises: CalibrationError where the text has fewer than two windows of tokens, or than a quarter of all asked for.
    """
    tokens = tokenize(tokenizer, text.text)
    needed = max(2 * seqlen, samples * seqlen // 4)
    if len(tokens) < needed:
        raise CalibrationError(
            f"{text.description}: {len(tokens):,} tokens; {samples} samples of {seqlen} need at least {needed:,} "
            "(give more text, or fewer or shorter samples)"
        )
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(tokens) - seqlen + 1, (samples,), generator=generator)
    windows = torch.stack([tokens[start : start + seqlen] for start in starts.tolist()])
    return Calibration(tokens=windows, description=text.description)


def tokenize(tokenizer: Any, text: str) -> torch.Tensor:
    """Return the tokens of `text`, int64 [n], without special tokens."""
    ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _read_folder(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.suffix in _TEXT_SUFFIXES and file.is_file())
    if not files:
        raise CalibrationError(f"{folder}: no text files; expected some of {', '.join(sorted(_TEXT_SUFFIXES))}")
    return "\n\n".join(_read_file(file) for file in files)


def _read_file(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as fault:
        raise CalibrationError(f"{file}: not UTF-8 text (byte {fault.start})") from None
    if file.suffix != ".jsonl":
        return text
    return "\n\n".join(
        _jsonl_text(file, number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()
    )


def _jsonl_text(file: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, str):
        raise CalibrationError(f"{file}: line {number}: expected an object with a string `text`, found {line[:60]!r}")
    return value


def _read_dataset(source: str) -> str:
    from datasets import load_dataset

    name, *rest = source.split(":")
    config, split = (rest[0] if len(rest) == 2 else None), (rest[-1] if rest else "train")
    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        texts, size = [], 0
        for row in islice(rows, 1_000_000):
            texts.append(row["text"])
            size += len(texts[-1])
            if size > _LIMIT:
                break
    except Exception as fault:  # the library raises dozens of kinds
        raise CalibrationError(
            f"{source}: no such file or folder, and no dataset of that id could be read ({first_line(fault)})"
        ) from None
    return "\n\n".join(texts)
