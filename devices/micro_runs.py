"""Single operators timed as an engine runs them: many of one kind in a graph, their constants mapped from a file.

Each graph is too large for the caches where a model's would be, so that one run stands for one token of a model. Shapes
are of no particular model. A micro-run gives the seconds of one whole run of the graph; `cost` makes of two sizes what
an operator takes by itself and for each unit of its work.

Letters: T tokens, K inputs and N outputs of a product, H heads, D their size, S state or tokens in the cache.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslim.devices.onnx_writer import GraphWriter
from edgeslim.runtime.engines import import_engine
from edgeslim.runtime.kernel_bench import random_matrix
from edgeslim.runtime.library import find_library

_OURS, _MICROSOFT = "edgeslim", "com.microsoft"
_INPUTS = ("values", "scales", "masks", "offsets")
_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One micro-run: `nodes` operators with `work` units of work each, in `seconds` (mean), `spread` the distance of
    its quartiles over the median."""

    nodes: int
    work: float
    seconds: float
    spread: float

    @property
    def each(self) -> float:
        """Seconds an operator."""
        return self.seconds / self.nodes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an operator takes: `fixed` seconds, and one second for each `rate` units of work."""

    fixed: float
    rate: float


def cost(small: Timing, large: Timing) -> Cost:
    """Return the line through two timings, neither of its parts negative."""
    slope = max((large.each - small.each) / (large.work - small.work), 0.05 * large.each / large.work)
    return Cost(fixed=max(0.0, small.each - slope * small.work), rate=1 / slope)


def timing_of(taken: Sequence[float], *, nodes: int, work: float) -> Timing:
    """Return the timing of a graph whose runs took `taken` seconds: their mean, as the rate of a run of many tokens is
    that of their mean, whatever disturbs some of them."""
    low, middle, high = (float(v) for v in np.percentile(taken, (25, 50, 75)))
    return Timing(nodes=nodes, work=work, seconds=float(np.mean(taken)), spread=(high - low) / middle)


class MicroRuns:
    """Graphs of single operators on onnxruntime with `threads` threads; `rounds` runs of each are timed."""

    def __init__(self, *, threads: int, rounds: int = 15) -> None:
        """Raises: RuntimeUnavailable without onnxruntime."""
        self._ort = import_engine("ort")
        self._threads, self._rounds = threads, rounds
        self._library = find_library()

    @property
    def has_kernels(self) -> bool:
        """Whether there is a kernel library, without which operators of ours cannot be timed."""
        return self._library is not None

    def product(self, form: str, density: float, *, tokens: int, k: int, n: int, megabytes: float) -> Timing:
        """Time products of ours, K to N and back in turn, in `form` at `density`; the work is in weights and tokens.

        `megabytes` is what all matrices take together.
        """
        graph = GraphWriter()
        graph.input("x", "float32", [1, tokens, k])
        value, nodes = add_products(graph, form, density, k=k, n=n, megabytes=megabytes)
        graph.output(value, "float32", [1, tokens, k])
        return self._timed(graph, {"x": _random(1, tokens, k)}, nodes, work=float(k * n * tokens))

    def stock_product(self, form: str, *, tokens: int, k: int, n: int, megabytes: float) -> Timing:
        """Time onnxruntime's own products: MatMul in fp32, MatMulNBits in int8 and int4, blocks of 128."""
        size = {"stock_fp32": 4.0, "stock_int8": 1.0, "stock_int4": 0.5}[form] * k * n
        nodes = 2 * max(1, round(megabytes * 1e6 / (2 * size)))
        graph = GraphWriter()
        graph.input("x", "float32", [1, tokens, k])
        value = "x"
        for number in range(nodes):
            inputs, outputs = (k, n) if number % 2 == 0 else (n, k)
            if form == "stock_fp32":
                values = np.random.default_rng(number).standard_normal((inputs, outputs), np.float32)
                matrix = graph.constant(f"w{number}", values * np.float32(inputs**-0.5))
                graph.node("MatMul", [value, matrix], [f"y{number}"])
            else:
                _blocks(graph, number, 8 if form == "stock_int8" else 4, inputs, outputs, value)
            value = f"y{number}"
        graph.output(value, "float32", [1, tokens, k])
        return self._timed(graph, {"x": _random(1, tokens, k)}, nodes, work=float(k * n * tokens))

    def attention(self, *, tokens: int, past: int, heads: int = 16, kv_heads: int = 4, size: int = 64) -> Timing:
        """Time grouped-query attention to a cache of `past` tokens; the work is in bytes of keys and values read for
        one token, in FLOPs for a prompt."""
        nodes, room = (48, 1024) if tokens == 1 else (8, max(1024, past + tokens))
        graph, shared = GraphWriter(), {}
        graph.input("qkv", "float32", [1, tokens, (heads + 2 * kv_heads) * size])
        graph.input("last", "int32", [1])
        graph.input("total", "int32", [])
        for number in range(nodes):
            names = [f"{kind}{number}" for kind in ("past_key", "past_value", "out", "key", "value")]
            for name in names[:2]:
                graph.input(name, "float32", [1, kv_heads, room, size])
            attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5, "do_rotary": 0}
            attributes |= {"rotary_interleaved": 0, "local_window_size": -1}
            operands = ["qkv", "", "", *names[:2], "last", "total"]
            domain = _OURS if self.has_kernels else _MICROSOFT
            graph.node("GroupQueryAttention", operands, names[2:], domain=domain, attributes=attributes)
            graph.output(names[2], "float32", [1, tokens, heads * size])
            for before, after in zip(names[:2], names[3:], strict=True):
                graph.output(after, "float32", [1, kv_heads, room, size])
                shared[after] = before
        caches = {name: np.zeros((1, kv_heads, room, size), np.float32) for name in shared.values()}
        seen = past + tokens
        feeds = {
            "qkv": _random(1, tokens, (heads + 2 * kv_heads) * size),
            "last": np.array([seen - 1], np.int32),
            "total": np.array(seen, np.int32),
            **caches,
        }
        one = 2.0 * kv_heads * seen * size * 4
        many = 4.0 * heads * size * (tokens * past + tokens * (tokens + 1) / 2)
        return self._timed(graph, feeds, nodes, work=one if tokens == 1 else many, shared=shared)

    def scan(self, *, tokens: int, state: int, heads: int = 32, size: int = 64) -> Timing:
        """Time Mamba-2's recurrence; the work is in bytes of state for one token, in elements of state and tokens for a
        prompt."""
        nodes = min(96, max(4, round((48e6 if tokens == 1 else 4e6) / (heads * size * state * 4))))
        graph, feeds = GraphWriter(), {}
        width = heads * size + 2 * state
        graph.input("xbc", "float32", [1, tokens, width])
        graph.input("dt", "float32", [1, tokens, heads])
        small = [graph.constant(name, np.ones(heads, np.float32)) for name in ("dt_bias", "a_log", "d")]
        attributes = {"num_heads": heads, "head_size": size, "state_size": state, "groups": 1, "dt_start": 0}
        for number in range(nodes):
            past, out, present = (f"{kind}{number}" for kind in ("past", "out", "present"))
            graph.input(past, "float32", [1, heads, state, size])
            graph.node(
                "StateSpaceScan", ["xbc", "dt", *small, past], [out, present], domain=_OURS, attributes=attributes
            )
            graph.output(out, "float32", [1, tokens, heads * size])
            graph.output(present, "float32", [1, heads, state, size])
            feeds[past] = np.zeros((1, heads, state, size), np.float32)
        feeds |= {"xbc": _random(1, tokens, width), "dt": _random(1, tokens, heads)}
        elements = float(heads * size * state)
        return self._timed(graph, feeds, nodes, work=elements * (4 if tokens == 1 else tokens))

    def convolution(self, *, tokens: int, channels: int, taps: int = 4) -> Timing:
        """Time causal convolutions; the work is in channels and tokens."""
        nodes, graph, feeds = 64, GraphWriter(), {}
        graph.input("x", "float32", [1, tokens, channels])
        weight = graph.constant("w", np.ones((channels, 1, taps), np.float32))
        bias = graph.constant("b", np.ones(channels, np.float32))
        for number in range(nodes):
            past, out, present = (f"{kind}{number}" for kind in ("past", "out", "present"))
            graph.input(past, "float32", [1, channels, taps - 1])
            graph.node(
                "CausalConv",
                ["x", weight, bias, past],
                [out, present],
                domain=_OURS,
                attributes={"x_start": 0, "activation": "silu"},
            )
            graph.output(out, "float32", [1, tokens, channels])
            graph.output(present, "float32", [1, channels, taps - 1])
            feeds[past] = np.zeros((1, channels, taps - 1), np.float32)
        return self._timed(graph, feeds | {"x": _random(1, tokens, channels)}, nodes, work=float(channels * tokens))

    def plain(self, *, tokens: int, width: int) -> Timing:
        """Time additions, which stand for every small operator; the work is in numbers written."""
        nodes, graph = 256, GraphWriter()
        graph.input("x", "float32", [1, tokens, width])
        graph.input("z", "float32", [width])
        value = "x"
        for number in range(nodes):
            graph.node("Add", [value, "z"], [f"y{number}"])
            value = f"y{number}"
        graph.output(value, "float32", [1, tokens, width])
        return self._timed(
            graph, {"x": _random(1, tokens, width), "z": np.zeros(width, np.float32)}, nodes, work=float(tokens * width)
        )

    def load_seconds(self, *, nodes: int) -> float:
        """Return the seconds of opening a graph of `nodes` products of ours (additions without a library)."""
        graph, size = GraphWriter(), 64
        graph.input("x", "float32", [1, 1, size])
        value = "x"
        if self.has_kernels:
            attributes, names = _packed("dense_int8", 1.0, size, size)
        for number in range(nodes):
            if self.has_kernels:
                own = _copied(graph, names, number)
                operands = [value, *own, "", "", "", ""]
                graph.node("PackedLinear", operands, [f"y{number}"], domain=_OURS, attributes=attributes)
            else:
                graph.node("Add", [value, "x"], [f"y{number}"])
            value = f"y{number}"
        graph.output(value, "float32", [1, 1, size])
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            file = graph.save(Path(folder))
            return float(np.median([seconds_of(lambda: self._open(file)) for _ in range(5)]))

    def _timed(
        self,
        graph: GraphWriter,
        feeds: Mapping[str, npt.NDArray[Any]],
        nodes: int,
        *,
        work: float,
        shared: Mapping[str, str] | None = None,
    ) -> Timing:
        """Return the timing of `graph`; outputs in `shared` are written where the input of that name lies."""
        with self._session(graph) as session:
            binding = session.io_binding()
            values = {name: self._ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            first = {}
            for output in session.get_outputs():
                held = values.get((shared or {}).get(output.name, ""))
                first[output.name] = held or self._ort.OrtValue.ortvalue_from_numpy(
                    np.zeros([int(d) for d in output.shape], np.float32)
                )
                binding.bind_ortvalue_output(output.name, first[output.name])
            for _ in range(_WARM_UP):
                session.run_with_iobinding(binding)
            taken = [seconds_of(lambda: session.run_with_iobinding(binding)) for _ in range(self._rounds)]
        return timing_of(taken, nodes=nodes, work=work)

    @contextmanager
    def _session(self, graph: GraphWriter) -> Iterator[Any]:
        with tempfile.TemporaryDirectory(prefix="edgeslim-probe-") as folder:
            yield self._open(graph.save(Path(folder)))

    def _open(self, file: Path) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self._threads
        options.enable_cpu_mem_arena = False
        if self._library is not None:
            options.register_custom_ops_library(str(self._library))
        return self._ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def add_products(graph: GraphWriter, form: str, density: float, *, k: int, n: int, megabytes: float) -> tuple[str, int]:
    """Add products of ours to `graph`, K to N and back in turn, after its value x [.., K]; return the last value, also
    [.., K], and how many there are. `megabytes` is what all matrices take together."""
    norm = graph.constant("norm", np.ones(k, np.float32))
    packed = [_packed(form, density, *shape) for shape in ((n, k), (k, n))]
    pair = sum(array.nbytes for _, tensors in packed for array in tensors.values())
    nodes, value = 2 * max(1, round(megabytes * 1e6 / pair)), "x"
    for number in range(nodes):
        (attributes, names), up = packed[number % 2], number % 2 == 0
        own = _copied(graph, names, number)
        operands = [value, *own, "", "", norm if up else "", "" if up else "x"]
        attributes = attributes | {"activations": "int8", "epsilon": 1e-6, "x_start": 0, "gate_start": 0}
        graph.node("PackedLinear", operands, [f"y{number}"], domain=_OURS, attributes=attributes)
        value = f"y{number}"
    return value, nodes


def _packed(form: str, density: float, n: int, k: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return attributes and tensors of a random matrix [n, k], floats as the type that the operator takes."""
    attributes, tensors = random_matrix(form, n, k, density, seed=n)
    kind = {16: np.float16, 32: np.float32}.get(attributes["bits"])
    return attributes, tensors if kind is None else tensors | {"values": tensors["values"].view(kind)}


def _copied(graph: GraphWriter, tensors: Mapping[str, npt.NDArray[Any]], number: int) -> list[str]:
    """Add the tensors of one product as constants of its own, so that no two products share memory."""
    names = []
    for kind in _INPUTS:
        array = tensors.get(kind)
        names.append("" if array is None else graph.constant(f"{kind}{number}", array))
    return names


def _blocks(graph: GraphWriter, number: int, bits: int, inputs: int, outputs: int, value: str) -> None:
    block = 128
    blocks = -(-inputs // block)
    values = np.random.default_rng(number).integers(0, 256, (outputs, blocks, block * bits // 8), np.uint8)
    packed = graph.constant(f"w{number}", values)
    scales = graph.constant(f"s{number}", np.full(outputs * blocks, 1e-3, np.float32))
    attributes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
    graph.node("MatMulNBits", [value, packed, scales], [f"y{number}"], domain=_MICROSOFT, attributes=attributes)


def _random(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long `call` takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
