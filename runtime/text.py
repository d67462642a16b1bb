"""Text to tokens and back with a bundle's own tokenizer, and its chat template.

The `tokenizers` library is used where it is installed, else onnxruntime-extensions by the native runtime, else
onnxruntime-genai's own tokenizer, so that a device needs one of them. Chat templates are rendered by onnxruntime-genai.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from edgeslim.errors import BundleError, RuntimeUnavailable
from edgeslim.runtime.config import read_object
from edgeslim.runtime.engines import import_engine, is_installed
from edgeslim.runtime.native_text import NativeTokenizer, is_text_available

TOKENIZER = "tokenizer.json"
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what both tokenizers decode an incomplete character to


class _Backend(Protocol):
    def encode(self, text: str, special: bool) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def detokenizer(self) -> "Detokenizer": ...


class TextCodec:
    """A bundle's tokenizer and chat template."""

    def __init__(self, bundle: Path) -> None:
        """Read the tokenizer of `bundle`.

        Raises: BundleError when it has none that can be read; RuntimeUnavailable when no library for it is installed.
        """
        self._bundle = bundle
        if not (bundle / TOKENIZER).is_file():
            raise BundleError(f"{bundle}: it has no {TOKENIZER}, which text needs; copy the model's into it")
        self._backend = _open_backend(bundle)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of `text`; `special` adds those the tokenizer puts around a text (mostly a leading BOS)."""
        return self._backend.encode(text, special)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return self._backend.decode(ids)

    def detokenizer(self) -> "Detokenizer":
        """Return a fresh streaming decoder."""
        return self._backend.detokenizer()

    def prompt_tokens(self, prompt: str, *, raw: bool = False) -> list[int]:
        """Return the tokens of `prompt` as one user message of the chat template, or of the bare text.

        The text is bare with `raw`, or where the bundle has no chat template.
        """
        if raw or not self.has_chat_template:
            return self.encode(prompt)
        return self.encode(self.chat([{"role": "user", "content": prompt}]), special=False)

    @property
    def has_chat_template(self) -> bool:
        """Whether the bundle carries a chat template."""
        return (self._bundle / "chat_template.jinja").is_file() or bool(
            read_object(self._bundle / "tokenizer_config.json").get("chat_template")
        )

    def chat(self, messages: Sequence[dict[str, str]]) -> str:
        """Return `messages` (``role``, ``content``) as the text the model was trained on, ready for its answer.

        Raises: BundleError when the template cannot be rendered; RuntimeUnavailable without onnxruntime-genai.
        """
        if not is_installed("genai"):
            raise RuntimeUnavailable(
                'chat templates need onnxruntime-genai; install it with: pip install "edgeslim[cpu]", or use --raw'
            )
        try:
            tokenizer = import_engine("genai").Tokenizer(str(self._bundle))
            return str(tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True))
        except RuntimeError as error:
            raise BundleError(f"{self._bundle}: its chat template cannot be rendered: {error}; use --raw") from error


class Detokenizer:
    """Tokens in, text out, one token at a time; an incomplete character waits for its remaining bytes.

    Decoders look at neighbours (a leading space may be dropped), so each step decodes a short window twice: with the
    new tokens and without them. The difference is what is new.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # the window begins here
        self._read = 0  # the tokens before this one are out already

    def push(self, token: int) -> str:
        """Return the text that `token` completes, often none."""
        self._ids.append(token)
        text = self._pending()
        if not text or text.endswith(_BROKEN):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def flush(self) -> str:
        """Return what still waits, without a character that never became complete."""
        text = self._pending().rstrip(_BROKEN)
        self._start = self._read = len(self._ids)
        return text

    def stream(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield the text of `tokens` piece by piece; the pieces are never empty."""
        for token in tokens:
            if piece := self.push(token):
                yield piece
        if rest := self.flush():
            yield rest

    def _pending(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]


class _NativeDetokenizer(Detokenizer):
    """The native runtime's, which keeps the bytes of an incomplete character itself."""

    def __init__(self, tokenizer: NativeTokenizer) -> None:
        super().__init__(tokenizer.decode)
        self._decoder = tokenizer.decoder()

    def push(self, token: int) -> str:
        return self._decoder.push(token)


def _open_backend(bundle: Path) -> _Backend:
    if find_spec("tokenizers"):
        return _TokenizersBackend(bundle)
    return _NativeBackend(bundle) if is_text_available() else _GenaiBackend(bundle)


class _TokenizersBackend:
    """The `tokenizers` library."""

    def __init__(self, bundle: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(bundle / TOKENIZER))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{bundle / TOKENIZER}: cannot be read: {error}") from error

    def encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.decode)


class _NativeBackend:
    """onnxruntime-extensions, by the native runtime."""

    def __init__(self, bundle: Path) -> None:
        self._tokenizer = NativeTokenizer(bundle)

    def encode(self, text: str, special: bool) -> list[int]:
        return self._tokenizer.encode(text, special=special)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def detokenizer(self) -> Detokenizer:
        return _NativeDetokenizer(self._tokenizer)


class _GenaiBackend:
    """onnxruntime-genai's tokenizer; it does not know the special tokens a tokenizer.json puts before a text."""

    def __init__(self, bundle: Path) -> None:
        try:
            self._tokenizer = import_engine("genai").Tokenizer(str(bundle))
        except RuntimeError as error:
            raise BundleError(f"{bundle}: its tokenizer cannot be read: {error}") from error
        self._leading = leading_ids(read_object(bundle / TOKENIZER).get("post_processor"))

    def encode(self, text: str, special: bool) -> list[int]:
        ids = [int(i) for i in self._tokenizer.encode(text)]
        missing = special and ids[: len(self._leading)] != self._leading
        return self._leading + ids if missing else ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.decode)


def leading_ids(post_processor: dict[str, Any] | None) -> list[int]:
    """Return the ids that a tokenizer.json's `post_processor` puts before a single text."""
    if not post_processor:
        return []
    if post_processor.get("type") == "Sequence":
        return [i for part in post_processor["processors"] for i in leading_ids(part)]
    if post_processor.get("type") != "TemplateProcessing":
        return []
    ids: list[int] = []
    for piece in post_processor["single"]:
        if "Sequence" in piece:
            break
        ids += post_processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return ids
