"""A bundle ready to run: tokens in, logits out, the model's state kept between calls.

Letters: B batch, T tokens fed, P tokens already in the state, V vocabulary.

A session is fed a prompt in pieces of any size, then one token at a time; it gives the logits after the last token fed.
`OrtSession` needs onnxruntime alone and can also give the logits of all positions (from a bundle's scoring graph);
`GenaiSession` is onnxruntime-genai's own loop, the faster one for text generation. The native runtime's session is in
`edgeslim.runtime.native_session`. A state can be saved to a file and loaded from it, except in onnxruntime-genai.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BundleError, RecipeError, did_you_mean, first_line
from edgeslim.runtime.bundle_library import BundleLibrary, bundle_library, without_library
from edgeslim.runtime.config import bundle_file, read_config
from edgeslim.runtime.engines import ENGINES, Engine, choose_engine, import_engine, is_installed
from edgeslim.runtime.manifest import GENAI_CONFIG, GRAPH
from edgeslim.runtime.providers import CPU, available_providers, fallback_warning, has_faster_provider, say
from edgeslim.runtime.saved_state import LOGITS, SavedState, bundle_identity, read_state, write_state

if TYPE_CHECKING:
    from edgeslim.runtime.native_session import NativeSession

Tokens = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]

PAST, PRESENT = "past_key_values.", "present."
KEPT_POSITIONS = "kept_positions"
"""Output of a scoring graph that reduces its prompt: the positions [B, K] of the tokens that are left."""
_KEPT_INSIDE = "onnxruntime-genai keeps its state to itself: it cannot be saved or loaded; use engine 'ort' or 'native'"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}


class Session(Protocol):
    """What generation, profiling and evaluation need of an engine."""

    @property
    def position(self) -> int:
        """Tokens in the state, P."""

    @property
    def context_length(self) -> int | None:
        """The most tokens the state may hold; None: no bound."""

    def reset(self, batch: int = 1) -> None:
        """Empty the state and make room for `batch` sequences."""

    def feed(self, tokens: Tokens) -> Logits:
        """Append `tokens` [B, T] to the state and return the logits [B, V] after the last of them."""

    def save_state(self, file: Path) -> None:
        """Write the state, which holds at least one token, into `file`.

        Raises: RecipeError where it is empty, or the engine cannot.
        """

    def load_state(self, file: Path) -> Logits:
        """Take back the state that `save_state` wrote into `file`; return the logits [B, V] after its last token.

        Raises: BundleError where it is damaged or of another bundle or engine; the session is then as it was.
        RecipeError where the engine cannot.
        """


def open_session(
    bundle: Path,
    engine: Literal["auto", "genai", "ort", "native"] = "auto",
    threads: int | None = None,
    max_length: int | None = None,
) -> "OrtSession | GenaiSession | NativeSession":
    """Return a session of `bundle` on `engine`; ``auto`` is what `best_engine` says. `threads` None leaves
    the number to the engine. `max_length` bounds prompt and new tokens together, where the engine makes room for them
    beforehand (onnxruntime-genai, native); None: as much as the bundle's configuration says.

    Raises: BundleError, RuntimeUnavailable.
    """
    if engine == "auto":
        if not _prefers_provider(bundle) and is_installed("native"):
            from edgeslim.runtime.native_session import NativeSession  # it builds on this module

            alone = NativeSession.alone(bundle, threads=threads, max_length=max_length)
            if alone is not None:
                return alone
        engine = _engine_with_onnxruntime(bundle)
    if engine not in ENGINES:
        raise RecipeError(f"unknown engine {engine!r}{did_you_mean(engine, ['auto', *ENGINES])}")
    if engine == "native":
        from edgeslim.runtime.native_session import NativeSession  # it builds on this module

        return NativeSession(bundle, threads=threads, max_length=max_length)
    if engine == "genai":
        return GenaiSession(bundle, threads=threads, max_length=max_length)
    return OrtSession(bundle, threads=threads)


def best_engine(bundle: Path) -> Engine:
    """Return the engine that ``auto`` means: plain onnxruntime where it has a provider that the bundle is made for, of
    which onnxruntime-genai knows nothing; the native runtime where it runs the bundle by itself, which is faster and
    takes less memory; else onnxruntime-genai where it is installed."""
    if not _prefers_provider(bundle) and is_installed("native"):
        from edgeslim.runtime.native_session import runs_alone  # it builds on this module

        if runs_alone(bundle):
            return "native"
    return _engine_with_onnxruntime(bundle)


def _prefers_provider(bundle: Path) -> bool:
    """Return whether plain onnxruntime has a provider here that `bundle` is made for."""
    config = read_config(bundle)
    if not config.providers or not is_installed("ort"):
        return False
    return has_faster_provider(import_engine("ort"), config.providers)


def _engine_with_onnxruntime(bundle: Path) -> Engine:
    """Return the engine for a bundle that the native runtime does not run by itself, or has a faster provider for."""
    return "ort" if _prefers_provider(bundle) else choose_engine(has_genai_config=read_config(bundle).has_genai_config)


class OrtSession:
    """A bundle's graph on plain onnxruntime. The state stays in onnxruntime's own buffers between calls."""

    def __init__(self, bundle: Path, *, graph: str = GRAPH, threads: int | None = None) -> None:
        """Load `graph` of `bundle`, with the session options and custom operators its genai_config.json names.

        Raises: BundleError when the graph is missing or does not load; RuntimeUnavailable without onnxruntime.
        """
        self.config = read_config(bundle)
        self._ort = import_engine("ort")
        self._bundle = bundle
        self._graph = str(bundle_file(bundle, graph))
        self.library = bundle_library(bundle)
        check_threads(threads)
        try:
            options = self._options(bundle, threads)
            providers = available_providers(self._ort, self.config.providers, bundle)
            self._session = self._ort.InferenceSession(self._graph, options, providers=providers)
        except Exception as error:  # onnxruntime's own exception classes share no base but Exception
            raise _load_error(self._graph, error) from error
        self.providers = tuple(self._session.get_providers())
        self.provider_warning = fallback_warning(
            self.config.providers, self._ort.get_available_providers(), self.providers
        )
        say(self.provider_warning)
        inputs = {i.name: i for i in self._session.get_inputs()}
        self._state_inputs = [i for name, i in inputs.items() if name.startswith(PAST)]
        self._wants_mask = "attention_mask" in inputs
        self._wants_positions = "position_ids" in inputs
        self._outputs = [o.name for o in self._session.get_outputs()]
        self.reduces = KEPT_POSITIONS in self._outputs
        grows = any(isinstance(d, str) for i in self._state_inputs for d in i.shape[1:])
        self._context_length = self.config.context_length if grows else None  # a recurrent state has no end
        self.reset()

    def _options(self, bundle: Path, threads: int | None) -> Any:
        return _ort_options(self._ort, bundle, self.config.session_options, threads, self.library)

    @property
    def position(self) -> int:
        return self._position

    @property
    def context_length(self) -> int | None:
        return self._context_length

    def reset(self, batch: int = 1) -> None:
        """Start `batch` new sequences: empty key-value caches, zero recurrent states.

        With several sequences, graphs with GroupQueryAttention take the prompt in one piece (onnxruntime's rule).
        """
        self._position = 0
        self._batch = batch
        self._logits: Logits | None = None
        self._state = {
            i.name: self._value(np.zeros(_first_shape(i.shape, batch), _DTYPES[i.type])) for i in self._state_inputs
        }

    def feed(self, tokens: Tokens) -> Logits:
        """Append `tokens` [B, T] to the state and return the logits [B, V] after the last of them."""
        return np.asarray(self._run(tokens)["logits"][:, -1], dtype=np.float32)

    def save_state(self, file: Path) -> None:
        """Write the state into `file`, one tensor for each of the graph's; see `edgeslim.runtime.saved_state`."""
        if self._logits is None:
            raise RecipeError("the state is empty: feed tokens before it is saved")
        arrays = {**{name: value.numpy() for name, value in self._state.items()}, LOGITS: self._logits}
        identity = bundle_identity(self._bundle)
        write_state(file, SavedState(engine="ort", bundle=identity, position=self._position, arrays=arrays))

    def load_state(self, file: Path) -> Logits:
        """Take back the state that `save_state` wrote into `file`; return the logits [B, V] after its last token."""
        saved = read_state(file, "ort", bundle_identity(self._bundle))
        self._check_state(file, saved)
        self._state = {i.name: self._value(np.array(saved.arrays[i.name])) for i in self._state_inputs}
        self._logits = np.array(saved.arrays[LOGITS])
        self._batch, self._position = len(self._logits), saved.position
        return self._logits.copy()

    def _check_state(self, file: Path, saved: SavedState) -> None:
        """Raise BundleError unless the arrays of `saved` are what the graph takes."""
        limit = self._context_length
        if limit is not None and saved.position > limit:
            raise BundleError(f"{file}: {saved.position} tokens do not fit the model's context of {limit}")
        names = {LOGITS, *(i.name for i in self._state_inputs)}
        if differing := sorted(names ^ saved.arrays.keys()):
            raise BundleError(f"{file}: not a state of this graph: {differing[0]} is in one of them only")
        batch = saved.arrays[LOGITS].shape[0] if saved.arrays[LOGITS].ndim == 2 else 0
        for i in self._state_inputs:
            array, shape = saved.arrays[i.name], [batch, *i.shape[1:]]
            if not _fits(array.shape, shape) or array.dtype != _DTYPES[i.type]:
                raise BundleError(
                    f"{file}: {i.name} is {array.dtype} {list(array.shape)}, the graph takes "
                    f"{np.dtype(_DTYPES[i.type])} {shape}"
                )

    def feed_all(self, tokens: Tokens) -> Logits:
        """Append `tokens` [B, T] to the state and return the logits [B, T, V] after each of them.

        Raises: BundleError when the graph gives the last position only, or reduced the tokens.
        """
        logits, positions = self.feed_kept(tokens)
        if positions.shape != tokens.shape:
            raise BundleError(f"{self._graph} reduces its prompts; its logits are those of the kept positions only")
        return logits

    def feed_kept(self, tokens: Tokens) -> tuple[Logits, Tokens]:
        """Append `tokens` [B, T] to the state; return the logits [B, K, V] after those that a reduction of the prompt
        leaves, and which these are [B, K], ascending: all of them where nothing is reduced.

        Raises: BundleError when the graph gives the last position only.
        """
        outputs = self._run(tokens)
        logits = np.asarray(outputs["logits"], dtype=np.float32)
        everything = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        positions = outputs.get(KEPT_POSITIONS, everything)
        if logits.shape[1] != positions.shape[1]:
            raise BundleError(f"{self._graph} gives the last position's logits only; open the bundle's scoring graph")
        return logits, np.asarray(positions, dtype=np.int64)

    @property
    def cache_lengths(self) -> tuple[int, ...]:
        """How many tokens the key-value cache of each layer that has one holds; a reduced prompt leaves fewer."""
        return tuple(value.shape()[2] for name, value in self._state.items() if name.endswith(".key"))

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole state: key-value caches, recurrent states, windows of convolutions."""
        return sum(math.prod(v.shape()) * np.dtype(_DTYPES[v.data_type()]).itemsize for v in self._state.values())

    def _run(self, tokens: Tokens) -> dict[str, npt.NDArray[Any]]:
        check_tokens(tokens, self._batch, self._position, self._context_length, self.config.vocab_size)
        binding = self._session.io_binding()
        for name, array in self._token_inputs(tokens).items():
            binding.bind_ortvalue_input(name, self._value(array))
        for name, value in self._state.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        outputs = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        self._state = {name: outputs[PRESENT + name.removeprefix(PAST)] for name in self._state}
        self._position += tokens.shape[1]
        results = {name: value.numpy() for name, value in outputs.items() if not name.startswith(PRESENT)}
        self._logits = np.array(results["logits"][:, -1], dtype=np.float32)
        return results

    def _token_inputs(self, tokens: Tokens) -> dict[str, Tokens]:
        batch, count = tokens.shape
        end = self._position + count
        inputs = {"input_ids": np.ascontiguousarray(tokens, dtype=np.int64)}
        if self._wants_mask:
            inputs["attention_mask"] = np.ones((batch, end), np.int64)
        if self._wants_positions:
            inputs["position_ids"] = np.tile(np.arange(self._position, end, dtype=np.int64), (batch, 1))
        return inputs

    def _value(self, array: npt.NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)


class GenaiSession:
    """A bundle on onnxruntime-genai, one sequence at a time."""

    def __init__(self, bundle: Path, *, threads: int | None = None, max_length: int | None = None) -> None:
        """Load `bundle`. `max_length` bounds prompt and new tokens together; None: what genai_config.json says.

        Raises: BundleError when the bundle does not load, or its layers' caches differ in length; RuntimeUnavailable
        without onnxruntime-genai.
        """
        self.config = read_config(bundle)
        if "genai" not in self.config.engines:
            raise BundleError(
                f"{bundle}: onnxruntime-genai cannot hold caches of different lengths, which a reduced prompt leaves; "
                "use engine 'ort'"
            )
        self._og = import_engine("genai")
        bundle_file(bundle, GENAI_CONFIG)
        self.library = _inside_only(bundle_library(bundle))
        check_threads(threads)
        try:
            self._model = self._load(bundle, threads)
        except Exception as error:  # pybind11 raises RuntimeError, json's parser others
            raise _load_error(str(bundle), error) from error
        self.provider_warning = fallback_warning(self.config.providers, (), (CPU,))
        say(self.provider_warning)
        self._max_length = max_length
        self._generator: Any = None
        self.reset()

    def _load(self, bundle: Path, threads: int | None) -> Any:
        options = self.config.session_options
        if not self.library.needed or self.library.path is not None or "custom_ops_library" not in options:
            return self._open(bundle, threads)
        with without_library(bundle) as twin:
            return self._open(twin, threads)

    def _open(self, folder: Path, threads: int | None) -> Any:
        config = self._og.Config(str(folder))
        for options in _overlays(threads, self.library):
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        return self._og.Model(config)

    @property
    def position(self) -> int:
        return int(self._generator.token_count())

    @property
    def context_length(self) -> int | None:
        return self._context_length

    def reset(self, batch: int = 1) -> None:
        """Start a new sequence. A new generator costs little and, unlike a rewind, works for recurrent states."""
        if batch != 1:
            raise RecipeError(f"onnxruntime-genai sessions hold one sequence, got batch {batch}; use engine 'ort'")
        params = self._og.GeneratorParams(self._model)
        if self._max_length is not None:
            params.set_search_options(max_length=self._max_length)
        self._context_length = int(params.get_search_options()["max_length"])
        self._generator = None  # its caches go before new ones come
        self._generator = self._og.Generator(self._model, params)

    def feed(self, tokens: Tokens) -> Logits:
        """Append `tokens` [1, T] to the state and return the logits [1, V] after the last of them."""
        check_tokens(tokens, 1, self.position, self._context_length, self.config.vocab_size)
        self._generator.append_tokens(np.ascontiguousarray(tokens[0], dtype=np.int32))
        return np.array(self._generator.get_logits()[:, -1], dtype=np.float32)  # a copy: the engine reuses its buffer

    def save_state(self, file: Path) -> None:
        """Refuse: onnxruntime-genai hands its state to nobody."""
        raise RecipeError(_KEPT_INSIDE)

    def load_state(self, file: Path) -> Logits:
        """Refuse: onnxruntime-genai takes a state from nobody."""
        raise RecipeError(_KEPT_INSIDE)


def _fits(found: tuple[int, ...], shape: list[int | str]) -> bool:
    """Return whether a state of shape `found` is one of a graph's `shape`, in which names are free dimensions."""
    return len(found) == len(shape) and all(isinstance(d, str) or d == n for d, n in zip(shape, found, strict=True))


def _first_shape(shape: list[int | str], batch: int) -> list[int]:
    """Return the shape of an empty state: the first dimension is the batch, other symbolic ones count past tokens."""
    return [batch, *(d if isinstance(d, int) else 0 for d in shape[1:])]


def check_tokens(tokens: Tokens, batch: int, position: int, limit: int | None, vocab_size: int | None) -> None:
    """Raise RecipeError unless `tokens` [B, T] can be fed behind `position` tokens, at most `limit` in all."""
    if tokens.ndim != 2 or tokens.shape[0] != batch or tokens.shape[1] == 0:
        raise RecipeError(f"tokens must have shape [{batch}, at least 1], got {list(tokens.shape)}")
    end = position + tokens.shape[1]
    if limit is not None and end > limit:
        raise RecipeError(f"{end} tokens do not fit the model's context of {limit}")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (vocab_size is not None and high >= vocab_size):
        raise RecipeError(f"token ids must be in [0, {vocab_size}), got {low if low < 0 else high}")


def _load_error(what: str, error: Exception) -> BundleError:
    return BundleError(f"{what} does not load: {first_line(error)}")


def check_threads(threads: int | None) -> None:
    """Raise RecipeError unless `threads` is None or positive."""
    if threads is not None and threads < 1:
        raise RecipeError(f"threads must be at least 1, got {threads}")


def _inside_only(library: BundleLibrary) -> BundleLibrary:
    """Return what onnxruntime-genai makes of `library`: it loads none from outside the bundle's folder."""
    return library if library.inside is not None else BundleLibrary(needed=library.needed)


def _overlays(threads: int | None, library: BundleLibrary) -> Iterator[dict[str, int | str]]:
    """Yield the session options in which this run may depart from the bundle's genai_config.json."""
    if threads is not None:
        yield {"intra_op_num_threads": threads}
    if library.inside is not None:
        yield {"custom_ops_library": library.inside}


def _ort_options(ort: Any, bundle: Path, genai: Mapping[str, Any], threads: int | None, library: BundleLibrary) -> Any:
    """Return onnxruntime's session options that mean the same as `genai`, those of a genai_config.json."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only, as onnxruntime-genai has it
    count = threads if threads is not None else genai.get("intra_op_num_threads")
    if count is not None:
        options.intra_op_num_threads = count
    options.enable_mem_pattern = bool(genai.get("enable_mem_pattern", True))
    if library.path is not None:
        options.register_custom_ops_library(str(library.path))
    elif not library.needed and (foreign := genai.get("custom_ops_library")):
        inside = bundle / foreign
        options.register_custom_ops_library(str(inside) if inside.is_file() else foreign)
    for key, value in genai.items():
        if "." in key:  # a configuration entry such as session.disable_prepacking
            options.add_session_config_entry(key, str(value))
    return options
