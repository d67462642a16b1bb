"""A bundle on the native runtime: the C++ engine that lies in the kernel library, on ONNX Runtime's own library.

One sequence at a time. A session belongs to one thread; `cancel` and `resume` may be called from any.

Letters: T tokens fed, V vocabulary.
"""

import ctypes
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeslim.errors import BundleError, EdgeslimError, RecipeError
from edgeslim.runtime.bundle_library import BundleLibrary
from edgeslim.runtime.config import read_config
from edgeslim.runtime.native_library import (
    FUNCTION_BODIES,
    WITH_ONNXRUNTIME,
    WITHOUT_ONNXRUNTIME,
    Generation,
    ModelInfo,
    ModelOptions,
    NativeLibrary,
    OnToken,
    SamplingOptions,
    SessionOptions,
    native_library,
    onnxruntime_library,
)
from edgeslim.runtime.providers import CPU, fallback_warning, say
from edgeslim.runtime.saved_state import LOGITS, Arrays, SavedState, bundle_identity, read_state, write_state
from edgeslim.runtime.session import Logits, Tokens, check_threads, check_tokens

End = Literal["length", "token", "room", "callback"]
_STATE = "native_state"  # tensor of a saved state: the bytes that the runtime gave
_ENDS: tuple[End, ...] = ("length", "token", "room", "callback")


@dataclass(frozen=True, kw_only=True)
class NativeSampling:
    """How the native runtime draws a token; the defaults cut nothing off, temperature 0 is greedy.

    The rules are transformers' of the same names, in its order. The draw depends on `seed`, the position and the logits
    alone. The runtime checks the values.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def options(self) -> SamplingOptions:
        """Return the structure that the runtime takes."""
        if not 0 <= self.seed < 1 << 64:
            raise RecipeError(f"seed must be in [0, 2^64), got {self.seed}")
        return SamplingOptions(
            size=ctypes.sizeof(SamplingOptions),
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
        )


GREEDY = NativeSampling()


class NativeSession:
    """A bundle's graph in the native runtime, its state in memory that is taken once."""

    def __init__(
        self,
        bundle: Path,
        *,
        threads: int | None = None,
        max_length: int | None = None,
        chunk: int | None = None,
        bodies: bool = False,
        onnxruntime: bool | None = None,
        model: ctypes.c_void_p | None = None,
    ) -> None:
        """Load `bundle`, unless `model` is it, loaded already, which is then the session's. `max_length` bounds prompt
        and new tokens together; None: what genai_config.json says.

        `chunk` tokens of a prompt run at once; None: the runtime's choice. `bodies` runs operators of ours by their
        function bodies. A graph of our own operators runs without ONNX Runtime; `onnxruntime` True gives it that graph
        too, False refuses one that needs it. Raises: RecipeError, BundleError, RuntimeUnavailable.
        """
        self.config = read_config(bundle)
        self.provider_warning = fallback_warning(self.config.providers, (), (CPU,))
        say(self.provider_warning)
        self._bundle = bundle
        check_threads(threads)
        self._native = native_library()
        self._model = model or _load(self._native, bundle, threads or 0, _flags(bodies, onnxruntime))
        try:
            self._session = _open(self._native, self._model, max_length or 0, chunk or 0)
        except BaseException:
            self._native.call("model_free", self._model)
            raise
        self.close = weakref.finalize(self, _free, self._native, self._session, self._model)
        info = ModelInfo(size=ctypes.sizeof(ModelInfo))
        self._native.check("model_get_info", self._model, ctypes.byref(info))
        self._vocab_size = int(info.vocab_size)
        self.isa = info.isa.decode()
        self.onnxruntime = info.onnxruntime.decode() or None
        self.library = BundleLibrary(needed=bool(info.packed), path=None if bodies else self._native.path)

    @classmethod
    def alone(
        cls, bundle: Path, *, threads: int | None = None, max_length: int | None = None
    ) -> "NativeSession | None":
        """Return a session of `bundle` without ONNX Runtime, None where its graph needs that.

        Raises: as a session does that is made of a bundle that loads.
        """
        check_threads(threads)
        try:
            model = _load(native_library(), bundle, threads or 0, WITHOUT_ONNXRUNTIME)
        except EdgeslimError:
            return None
        return cls(bundle, threads=threads, max_length=max_length, model=model)

    @property
    def position(self) -> int:
        """Tokens in the state."""
        return int(self._native.call("session_position", self._session))

    @property
    def context_length(self) -> int | None:
        """The most tokens the state has room for; None: no bound."""
        return int(self._native.call("session_room", self._session)) or None

    def reset(self, batch: int = 1) -> None:
        """Empty the state.

        Raises: RecipeError where `batch` is not 1.
        """
        if batch != 1:
            raise RecipeError(f"native sessions hold one sequence, got batch {batch}; use engine 'ort'")
        self._native.call("session_reset", self._session)

    def feed(self, tokens: Tokens) -> Logits:
        """Append `tokens` [1, T] to the state and return the logits [1, V] after the last of them."""
        check_tokens(tokens, 1, self.position, self.context_length, self._vocab_size)
        row = np.ascontiguousarray(tokens[0], dtype=np.int32)
        self._native.check("session_feed", self._session, row.ctypes.data, len(row))
        return self.logits()[None]

    def logits(self) -> npt.NDArray[np.float32]:
        """Return a copy of the logits [V] after the last token fed.

        Raises: RecipeError before the first, and after a failed call.
        """
        pointer = self._native.call("session_logits", self._session)
        if not pointer:
            raise RecipeError("there are no logits: feed tokens first")
        return np.ctypeslib.as_array(pointer, (self._vocab_size,)).copy()

    def sample(self, sampling: NativeSampling = GREEDY) -> int:
        """Return a token drawn after the last one fed; the state stays as it is."""
        token = ctypes.c_int32()
        self._native.check("session_sample", self._session, ctypes.byref(sampling.options()), ctypes.byref(token))
        return token.value

    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: NativeSampling = GREEDY,
        *,
        eos_ids: Collection[int] | None = None,
        on_token: Callable[[int], object] | None = None,
    ) -> tuple[list[int], End]:
        """Feed `prompt` after what the state holds; return the tokens drawn and what ended them.

        `eos_ids` None takes the bundle's. `on_token` gets each token as it comes and ends the text by returning False.
        The last token is not fed. Raises: Cancelled; what `on_token` raises.
        """
        tokens: list[int] = []
        thrown: list[BaseException] = []

        def take(token: int, _: Any) -> int:
            tokens.append(token)
            try:
                return int(on_token is not None and on_token(token) is False)
            except BaseException as fault:  # must not cross the C frames above
                thrown.append(fault)
                return 1

        ends = (ctypes.c_int32 * len(eos_ids or ()))(*(eos_ids or ()))
        generation = Generation(
            size=ctypes.sizeof(Generation),
            end_token_count=0 if eos_ids is None else len(ends) or -1,
            end_tokens=ctypes.cast(ends, ctypes.POINTER(ctypes.c_int32)),
            max_new_tokens=max_new_tokens,
            sampling=sampling.options(),
            on_token=OnToken(take),
        )
        row = np.asarray(prompt, dtype=np.int32)
        self._native.check("session_generate", self._session, row.ctypes.data, len(row), ctypes.byref(generation))
        if thrown:
            raise thrown[0]
        return tokens, _ENDS[generation.ended_by]

    def cancel(self) -> None:
        """Let the call under way, and every later one until `resume`, end with `Cancelled`; from any thread."""
        self._native.call("session_cancel", self._session)

    def resume(self) -> None:
        """Take `cancel` back."""
        self._native.call("session_resume", self._session)

    def save(self) -> bytes:
        """Return the state; a session of the same bundle, here or in another process, goes on from it exactly."""
        needed = ctypes.c_size_t()
        self._native.check("session_save", self._session, None, 0, ctypes.byref(needed))
        data = ctypes.create_string_buffer(needed.value)
        self._native.check("session_save", self._session, data, needed.value, ctypes.byref(needed))
        return data.raw

    def restore(self, state: bytes) -> None:
        """Take back a state that `save` gave.

        Raises: BundleError where it is damaged or of another bundle; the session is then as it was.
        """
        self._native.check("session_restore", self._session, state, len(state))

    def save_state(self, file: Path) -> None:
        """Write what `save` gives, and the logits, into `file`; see `edgeslim.runtime.saved_state`."""
        if self.position == 0:
            raise RecipeError("the state is empty: feed tokens before it is saved")
        arrays: Arrays = {_STATE: np.frombuffer(self.save(), np.uint8), LOGITS: self.logits()[None]}
        identity = bundle_identity(self._bundle)
        write_state(file, SavedState(engine="native", bundle=identity, position=self.position, arrays=arrays))

    def load_state(self, file: Path) -> Logits:
        """Take back the state that `save_state` wrote into `file`; return the logits [1, V] after its last token."""
        saved = read_state(file, "native", bundle_identity(self._bundle))
        if _STATE not in saved.arrays:
            raise BundleError(f"{file}: damaged: it has no tensor {_STATE}")
        try:
            self.restore(saved.arrays[_STATE].tobytes())
        except BundleError as fault:
            raise BundleError(f"{file}: {fault}") from None
        return self.logits()[None]


def native_sample(
    logits: npt.NDArray[np.float32], sampling: NativeSampling, *, seen: Sequence[int] = (), position: int = 0
) -> int:
    """Return the token that the native runtime draws for `logits` [V] after the tokens `seen`."""
    row, before, token = np.ascontiguousarray(logits, np.float32), np.asarray(seen, np.int32), ctypes.c_int32()
    native_library().check(
        "sample",
        row.ctypes.data,
        len(row),
        before.ctypes.data,
        len(before),
        ctypes.byref(sampling.options()),
        position,
        ctypes.byref(token),
    )
    return token.value


def native_uniform(seed: int, position: int) -> float:
    """Return the number in [0, 1) that `seed` gives for a draw at `position`."""
    return float(native_library().call("uniform", seed, position))


def runs_alone(bundle: Path) -> bool:
    """Return whether the native runtime runs `bundle` without ONNX Runtime: whether all operators of its graph are its
    own. Nothing is said of why not: whoever loads the bundle is told."""
    native = native_library()
    try:
        model = _load(native, bundle, 1, WITHOUT_ONNXRUNTIME)
    except EdgeslimError:
        return False
    native.call("model_free", model)
    return True


def _flags(bodies: bool, onnxruntime: bool | None) -> int:
    where = 0 if onnxruntime is None else WITH_ONNXRUNTIME if onnxruntime else WITHOUT_ONNXRUNTIME
    return where | (FUNCTION_BODIES if bodies else 0)


def _load(native: NativeLibrary, bundle: Path, threads: int, flags: int) -> ctypes.c_void_p:
    runtime = onnxruntime_library()
    options = ModelOptions(
        size=ctypes.sizeof(ModelOptions),
        flags=flags,
        threads=threads,
        onnxruntime=None if runtime is None else str(runtime).encode(),
    )
    model = ctypes.c_void_p()
    native.check("model_load", str(bundle).encode(), ctypes.byref(options), ctypes.byref(model))
    return model


def _open(native: NativeLibrary, model: ctypes.c_void_p, room: int, chunk: int) -> ctypes.c_void_p:
    options = SessionOptions(size=ctypes.sizeof(SessionOptions), room=room, chunk=chunk)
    session = ctypes.c_void_p()
    native.check("session_open", model, ctypes.byref(options), ctypes.byref(session))
    return session


def _free(native: NativeLibrary, session: ctypes.c_void_p, model: ctypes.c_void_p) -> None:
    native.call("session_free", session)
    native.call("model_free", model)
