"""Single operators timed on the native runtime by itself, as `edgeslim.devices.micro_runs` times them on onnxruntime.

A graph of many operators of one kind is a bundle: a row of numbers for the token, the operators, logits of a narrow
vocabulary. What such a bundle takes without them is taken off. Tokens are fed as `edgeslim profile` feeds them.

Letters: T tokens, K inputs and N outputs of a product, H heads, D their size, S state or tokens in the cache.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeslim.devices.micro_bundle import count_tokens
from edgeslim.devices.micro_runs import Timing, add_products, seconds_of, timing_of
from edgeslim.devices.onnx_writer import GraphWriter
from edgeslim.errors import EdgeslimError
from edgeslim.runtime import native_library
from edgeslim.runtime.config import HF_CONFIG
from edgeslim.runtime.kernel_bench import random_matrix
from edgeslim.runtime.manifest import GENAI_CONFIG
from edgeslim.runtime.native_session import NativeSession

_OURS = "edgeslim"
ROWS = 64
"""Of the table that a token picks its numbers from, which is the vocabulary, too."""
_WARM_UP = 2
_CONTEXT = 1024


@dataclass(kw_only=True)
class _Micro:
    """A bundle in the making; its graph has the value x [1, T, `width`]."""

    width: int
    attends: bool = False

    def __post_init__(self) -> None:
        self.graph = GraphWriter()
        self.graph.input("input_ids", "int64", ["batch", "sequence"])
        self.states: list[tuple[str, list[int | str]]] = []
        self.row("x", self.width)
        if self.attends:
            count_tokens(self.graph)

    def row(self, name: str, width: int) -> None:
        """Add the value `name` [1, T, width], numbers that each token has of its own."""
        table = np.random.default_rng(width).standard_normal((ROWS, width), np.float32)
        self.graph.node("Gather", [self.graph.constant(f"table_{name}", table), "input_ids"], [name])

    def state(self, number: int, kind: str, shape: list[int | str]) -> tuple[str, str]:
        """Add a state and return the names of what it was and of what it becomes."""
        past, present = f"past_key_values.{number}.{kind}", f"present.{number}.{kind}"
        self.graph.input(past, "float32", ["batch", *shape])
        self.states.append((present, ["batch", *("total" if d == "past" else d for d in shape)]))
        return past, present

    def save(self, folder: Path, value: str, width: int) -> None:
        """Write the bundle: logits from `value` [1, T, width] at the last token."""
        g = self.graph
        g.node("Gather", [value, g.constant("last", np.array([-1], np.int64))], ["row_last"], attributes={"axis": 1})
        attributes, tensors = random_matrix("dense_int8", ROWS, width, 1.0, seed=1)
        names = [g.constant(f"head_{kind}", array) for kind, array in tensors.items()]
        attributes |= {"activations": "int8", "x_start": 0, "gate_start": 0}
        g.node("PackedLinear", ["row_last", *names], ["logits"], domain=_OURS, attributes=attributes)
        g.output("logits", "float32", ["batch", 1, ROWS])
        for name, shape in self.states:
            g.output(name, "float32", shape)
        g.save(folder)
        decoder = {"session_options": {"provider_options": []}, "filename": "model.onnx", "inputs": {}, "outputs": {}}
        model = {"type": "decoder", "vocab_size": ROWS, "context_length": _CONTEXT, "decoder": decoder}
        search = {"max_length": _CONTEXT, "past_present_share_buffer": True}
        (folder / GENAI_CONFIG).write_text(json.dumps({"model": model, "search": search}), encoding="utf-8")
        config = {"model_type": "llama", "vocab_size": ROWS, "max_position_embeddings": _CONTEXT}
        (folder / HF_CONFIG).write_text(json.dumps(config), encoding="utf-8")


def write_nothing(folder: Path) -> None:
    """Write a bundle with next to nothing in it into the empty `folder`: a row picked, and logits of it."""
    _Micro(width=64).save(folder, "x", 64)


class NativeRuns:
    """Bundles of single operators on the native runtime with `threads` threads; `rounds` runs of each are timed."""

    def __init__(self, *, threads: int, rounds: int = 15) -> None:
        self._threads, self._rounds = threads, rounds

    @property
    def has_kernels(self) -> bool:
        """Always: they are the runtime's own."""
        return True

    @staticmethod
    def is_possible() -> bool:
        """Return whether the native runtime is here and runs such bundles by itself."""
        if not native_library.is_available():
            return False
        try:
            return NativeRuns(threads=1, rounds=1).nothing(tokens=1).seconds > 0
        except EdgeslimError:
            return False

    def nothing(self, *, tokens: int) -> Timing:
        """Time a bundle with none of the operators: what feeding tokens takes by itself."""
        return self._timed(_Micro(width=64), "x", 64, tokens=tokens, nodes=1, work=1.0)

    def product(self, form: str, density: float, *, tokens: int, k: int, n: int, megabytes: float) -> Timing:
        """Time products; see `MicroRuns.product`."""
        micro = _Micro(width=k)
        value, nodes = add_products(micro.graph, form, density, k=k, n=n, megabytes=megabytes)
        return self._timed(micro, value, k, tokens=tokens, nodes=nodes, work=float(k * n * tokens))

    def attention(self, *, tokens: int, past: int, heads: int = 16, kv_heads: int = 4, size: int = 64) -> Timing:
        """Time grouped-query attention; see `MicroRuns.attention`."""
        nodes = 48 if tokens == 1 else 8
        micro = _Micro(width=(heads + 2 * kv_heads) * size, attends=True)
        for number in range(nodes):
            pairs = [micro.state(number, kind, [kv_heads, "past", size]) for kind in ("key", "value")]
            attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5, "do_rotary": 0}
            attributes |= {"rotary_interleaved": 0, "local_window_size": -1}
            operands = ["x", "", "", *(before for before, _ in pairs), "seqlens", "total_length"]
            outputs = [f"out{number}", *(after for _, after in pairs)]
            micro.graph.node("GroupQueryAttention", operands, outputs, domain=_OURS, attributes=attributes)
        seen = past + tokens if tokens > 1 else past + _WARM_UP + (self._rounds + 1) / 2
        one = 2.0 * kv_heads * seen * size * 4
        many = 4.0 * heads * size * (tokens * past + tokens * (tokens + 1) / 2)
        work = one if tokens == 1 else many
        return self._timed(micro, f"out{nodes - 1}", heads * size, tokens=tokens, nodes=nodes, work=work, past=past)

    def scan(self, *, tokens: int, state: int, heads: int = 32, size: int = 64) -> Timing:
        """Time Mamba-2's recurrence; see `MicroRuns.scan`."""
        nodes = min(96, max(4, round((48e6 if tokens == 1 else 4e6) / (heads * size * state * 4))))
        micro = _Micro(width=heads * size + 2 * state)
        micro.row("dt", heads)
        small = [micro.graph.constant(name, np.ones(heads, np.float32)) for name in ("dt_bias", "a_log", "d")]
        attributes = {"num_heads": heads, "head_size": size, "state_size": state, "groups": 1, "dt_start": 0}
        for number in range(nodes):
            past, present = micro.state(number, "recurrent_state", [heads, state, size])
            operands, outputs = ["x", "dt", *small, past], [f"out{number}", present]
            micro.graph.node("StateSpaceScan", operands, outputs, domain=_OURS, attributes=attributes)
        work = float(heads * size * state) * (4 if tokens == 1 else tokens)
        return self._timed(micro, f"out{nodes - 1}", heads * size, tokens=tokens, nodes=nodes, work=work)

    def convolution(self, *, tokens: int, channels: int, taps: int = 4) -> Timing:
        """Time causal convolutions; see `MicroRuns.convolution`."""
        nodes, micro = 64, _Micro(width=channels)
        weight = micro.graph.constant("w", np.ones((channels, 1, taps), np.float32))
        bias = micro.graph.constant("b", np.ones(channels, np.float32))
        for number in range(nodes):
            past, present = micro.state(number, "conv_state", [channels, taps - 1])
            operands, outputs = ["x", weight, bias, past], [f"out{number}", present]
            attributes = {"x_start": 0, "activation": "silu"}
            micro.graph.node("CausalConv", operands, outputs, domain=_OURS, attributes=attributes)
        work = float(channels * tokens)
        return self._timed(micro, f"out{nodes - 1}", channels, tokens=tokens, nodes=nodes, work=work)

    def plain(self, *, tokens: int, width: int) -> Timing:
        """Time rows picked, `width` numbers for each token, which stand for every small operator."""
        nodes, micro = 64, _Micro(width=64)
        for number in range(nodes):
            micro.row(f"row{number}", width)
        work = float(tokens * width)
        return self._timed(micro, f"row{nodes - 1}", width, tokens=tokens, nodes=nodes, work=work)

    def load_seconds(self, *, nodes: int) -> float:
        """Return the seconds of loading a bundle of `nodes` products of 64 x 64."""
        micro = _Micro(width=64)
        attributes, tensors = random_matrix("dense_int8", 64, 64, 1.0, seed=64)
        attributes |= {"activations": "int8", "x_start": 0, "gate_start": 0}
        value = "x"
        for number in range(nodes):
            own = [micro.graph.constant(f"{kind}{number}", array) for kind, array in tensors.items()]
            micro.graph.node("PackedLinear", [value, *own], [f"y{number}"], domain=_OURS, attributes=attributes)
            value = f"y{number}"
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            micro.save(Path(folder), value, 64)
            return float(np.median([seconds_of(lambda: self._load(Path(folder)).close()) for _ in range(5)]))

    def _timed(
        self, micro: _Micro, value: str, width: int, *, tokens: int, nodes: int, work: float, past: int = 0
    ) -> Timing:
        """Return the timing of `tokens` fed after `past` others; a prompt begins anew each time."""
        rng = np.random.default_rng(0)
        before, row = (rng.integers(0, ROWS, (1, count), dtype=np.int64) for count in (past, tokens))
        taken = []
        with self._session(micro, value, width) as session:
            for done in range(_WARM_UP + self._rounds):
                if done == 0 or tokens > 1:
                    session.reset()
                    if past:
                        session.feed(before)
                taken.append(seconds_of(lambda: session.feed(row)))
        return timing_of(taken[_WARM_UP:], nodes=nodes, work=work)

    @contextmanager
    def _session(self, micro: _Micro, value: str, width: int) -> Iterator[NativeSession]:
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            micro.save(Path(folder), value, width)
            session = self._load(Path(folder))
            try:
                yield session
            finally:
                session.close()

    def _load(self, folder: Path) -> NativeSession:
        return NativeSession(folder, threads=self._threads, onnxruntime=False)
