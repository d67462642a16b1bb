"""What a bundle does for one token and for a prompt, read from its graph: products, attention, scans, and the rest.

Nothing is run. Products of constants are counted by the form of their weights; what else an operator does is counted in
the units that a device's costs are in (see `edgeslim.devices.catalog.Costs`).

Letters: T tokens of a call, P tokens in the cache before it, K inputs and N outputs of a product, H heads of size D.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeslim.runtime.config import HF_CONFIG, read_config, read_object
from edgeslim.runtime.graph_file import Constant, Graph, Node, read_graph
from edgeslim.runtime.manifest import GRAPH

STATE = "past_key_values."
_FLOAT_TYPES = {1: "fp32", 10: "fp16", 16: "fp16"}
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")
_SCANS = ("StateSpaceScan", "LinearAttention", "SelectiveScan")
_CONVOLUTIONS = ("CausalConv", "CausalConvWithState")
_FREE = ("Constant", "Identity")


@dataclass(frozen=True, kw_only=True)
class Product:
    """A product with constant weights [N, K] of which `density` are stored in `bytes`; every token pays for it, or (the
    head) only the last one."""

    name: str
    form: str
    density: float
    n: int
    k: int
    bytes: int
    last_only: bool = False

    @property
    def weights(self) -> int:
        """All weights, stored or not."""
        return self.n * self.k

    @property
    def is_masked(self) -> bool:
        """Whether a mask says which weights are stored."""
        return self.form.startswith(("bitmap_", "nm"))


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One layer's attention: H heads of size D on a cache of `kv_heads`, at most `window` tokens back (0: all)."""

    heads: int
    kv_heads: int
    size: int
    window: int

    def read_bytes(self, seen: int) -> float:
        """Return the bytes of float32 keys and values that a token reads after `seen` tokens, itself included."""
        return 8.0 * self.kv_heads * self.size * (min(seen, self.window) if self.window else seen)

    def prompt_flops(self, tokens: int) -> float:
        """Return the FLOPs of a prompt, two a multiply-add, each query on the keys that it sees."""
        reach = min(tokens, self.window) if self.window else tokens
        pairs = reach * (reach + 1) / 2 + (tokens - reach) * reach
        return 4.0 * self.heads * self.size * pairs


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a bundle does. `scans` are the elements of state of each scan, `convolutions` channels of each, `nodes` the
    operators that are none of these and `width` the numbers that one of them typically writes for a token."""

    products: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    scans: tuple[int, ...]
    convolutions: tuple[int, ...]
    nodes: int
    width: int
    vocab_size: int
    state_bytes: int
    cache_bytes_per_token: int
    widest: int
    layers: int

    @property
    def weights(self) -> int:
        """Weights of all products."""
        return sum(p.weights for p in self.products)

    @property
    def product_bytes(self) -> int:
        """Bytes of weights that one token reads."""
        return sum(p.bytes for p in self.products)

    @property
    def operators(self) -> int:
        """All operators that take time."""
        return len(self.products) + len(self.attentions) + len(self.scans) + len(self.convolutions) + self.nodes

    def flops(self, tokens: int) -> float:
        """Return the FLOPs of a prompt of `tokens`: two a multiply-add; zeros count, as dense hardware does them."""
        products = sum(2.0 * p.weights * (1 if p.last_only else tokens) for p in self.products)
        attention = sum(a.prompt_flops(tokens) for a in self.attentions)
        return products + attention + sum(6.0 * elements * tokens for elements in self.scans)

    def memory_bytes(self, tokens: int, prompt: int) -> int:
        """Return the bytes beside the weights: caches for `tokens`, states, and what a prompt's operators hold."""
        caches = self.cache_bytes_per_token * tokens + 2 * self.state_bytes
        return caches + 4 * prompt * self.widest * 3 + 4 * 2 * self.vocab_size


def read_workload(bundle: Path) -> Workload:
    """Return what `bundle` does.

    Raises: BundleError where it has no readable graph.
    """
    graph, config = read_graph(bundle / GRAPH), read_config(bundle)
    counted = _Counted(graph, read_object(bundle / HF_CONFIG), config.vocab_size or 0)
    return counted.workload()


class _Counted:
    """The nodes of a graph sorted by what they do."""

    def __init__(self, graph: Graph, config: Mapping[str, Any], vocab_size: int) -> None:
        self._graph, self._config, self._vocab_size = graph, config, vocab_size
        self._values = {value.name: value for value in graph.inputs}
        self._products: list[Product] = []
        self._attentions: list[Attention] = []
        self._scans: list[int] = []
        self._convolutions: list[int] = []
        self._nodes = 0

    def workload(self) -> Workload:
        """Return the sums."""
        for node in self._graph.nodes:
            self._count(node)
        states = [v for v in self._graph.inputs if v.name.startswith(STATE)]
        growing = [v for v in states if any(isinstance(d, str) for d in v.shape[1:])]
        widths = [p.n for p in self._products if not p.last_only] or [1]
        return Workload(
            products=tuple(self._products),
            attentions=tuple(self._attentions),
            scans=tuple(self._scans),
            convolutions=tuple(self._convolutions),
            nodes=self._nodes,
            width=int(self._config.get("hidden_size") or sorted(widths)[len(widths) // 2]),
            vocab_size=self._vocab_size,
            state_bytes=sum(int(_fixed(v.shape) * v.element_bytes) for v in states if v not in growing),
            cache_bytes_per_token=sum(int(_fixed(v.shape) * v.element_bytes) for v in growing),
            widest=max(widths),
            layers=len({v.name.split(".")[1] for v in states}) or 1,
        )

    def _count(self, node: Node) -> None:
        constants = self._graph.constants_of(node)
        if node.op_type in _FREE or node.op_type in ("PackedGather", "GatherBlockQuantized"):
            self._nodes += node.op_type not in _FREE
        elif (product := self._product(node, constants)) is not None:
            self._products.append(product)
        elif node.op_type in _ATTENTION:
            self._attentions.append(self._attention(node))
        elif node.op_type in _SCANS:
            self._scans.append(self._state_elements(node))
        elif node.op_type in _CONVOLUTIONS:
            self._convolutions.append(max((c.shape[0] for c in constants), default=1))
        else:
            self._nodes += 1

    def _product(self, node: Node, constants: list[Constant]) -> Product | None:
        a = node.attributes
        if node.op_type == "PackedLinear":
            return self._named(node, int(a["n"]), int(a["k"]), *_packed_form(node, self._graph))
        size = sum(c.bytes for c in constants)
        if node.op_type == "MatMulNBits":
            return self._named(node, int(a["N"]), int(a["K"]), f"stock_int{a.get('bits', 4)}", 1.0, size)
        matrices = [c for c in constants if len(c.shape) == 2 and min(c.shape) > 1]
        if node.op_type == "DynamicQuantizeMatMul" and matrices:
            return self._named(node, matrices[0].shape[1], matrices[0].shape[0], "stock_int8", 1.0, size)
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul") and matrices:
            k, n = matrices[0].shape
            if a.get("transB"):
                k, n = n, k
            kind = _FLOAT_TYPES.get(matrices[0].type, "fp32")
            return self._named(node, n, k, f"stock_{kind}", 1.0, size)
        if node.op_type == "Conv" and constants and len(constants[0].shape) == 3 and constants[0].shape[1] > 1:
            n, k = constants[0].shape[0], constants[0].shape[1]
            kind = _FLOAT_TYPES.get(constants[0].type, "fp32")
            return self._named(node, n, k, f"stock_{kind}", 1.0, size)
        return None

    def _named(self, node: Node, n: int, k: int, form: str, density: float, size: int) -> Product:
        last = bool(self._vocab_size) and n == self._vocab_size
        return Product(name=node.name, form=form, density=density, n=n, k=k, bytes=size, last_only=last)

    def _attention(self, node: Node) -> Attention:
        a = node.attributes
        past = next((self._values[i] for i in node.inputs if i.startswith(STATE) and i in self._values), None)
        shape = [d for d in past.shape if isinstance(d, int)] if past is not None else []
        kv_heads = int(a.get("kv_num_heads") or (shape[0] if shape else 1))
        return Attention(
            heads=int(a.get("num_heads") or kv_heads),
            kv_heads=kv_heads,
            size=shape[-1] if shape else 64,
            window=max(0, int(a.get("local_window_size", 0))),
        )

    def _state_elements(self, node: Node) -> int:
        past = [self._values[name] for name in node.inputs if name in self._values and name.startswith(STATE)]
        if past:
            return _fixed(past[0].shape)
        a = node.attributes
        return math.prod(int(a.get(name, 1)) for name in ("num_heads", "head_size", "state_size"))


def _packed_form(node: Node, graph: Graph) -> tuple[str, float, int]:
    """Return form, stored share and bytes of a PackedLinear's matrix."""
    a = node.attributes
    parts = [graph.constants.get(name) for name in node.inputs[1:5]]
    size = sum(part.bytes for part in parts if part is not None)
    bits, group = int(a["bits"]), int(a.get("group", 0))
    values = f"fp{bits}" if bits > 8 else f"int{bits}" + (f"g{group}" if group else "")
    layout = str(a.get("layout", "dense"))
    stored = 8 * (parts[0].bytes if parts and parts[0] is not None else 0) / bits / (int(a["n"]) * int(a["k"]))
    if layout == "nm":
        n, m = int(a["pattern_n"]), int(a["pattern_m"])
        return f"nm{n}of{m}_{values}", n / m, size
    return f"{layout}_{values}", 1.0 if layout == "dense" else min(1.0, stored), size


def _fixed(shape: tuple[int | str, ...]) -> int:
    """Return the product of the sizes that are fixed."""
    return math.prod(d for d in shape if isinstance(d, int))
