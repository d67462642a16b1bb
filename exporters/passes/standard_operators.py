"""A graph in basic operators of ONNX's own domain: what TensorRT's parser reads, from the first Jetson release on.

Before: ``n, _, _, s = com.microsoft::SkipSimplifiedLayerNormalization(a, b, w)``; ``o, k, v =
com.microsoft::GroupQueryAttention(qkv, …)``; ``y = RMSNormalization(x, w)``.
After: Add, Pow, ReduceMean, Sqrt, Div, Mul; MatMul, Softmax, Concat of past and present; opset 17, no other domain.

The bodies are in `standard_bodies.py`. Positions, masks and rotary angles are computed once for all layers. Weights
stay as they are: MatMul's constant is [K, N], its input channels along axis 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx
import onnx.parser
import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.passes import standard_bodies as bodies
from edgeslim.exporters.passes.standard_bodies import OPSET, Body

_DOMAIN = "edgeslim.standard"  # of functions that live until they are inlined
_IR_VERSION = 8  # of onnx 1.12, the first with opset 17

SIMPLE: dict[tuple[str, str], Callable[[ir.Node], Body]] = {
    ("", "RMSNormalization"): bodies.rms_norm,
    ("", "LayerNormalization"): bodies.layer_norm,
    ("", "Gelu"): bodies.gelu,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): bodies.skip_rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): bodies.skip_layer_norm,
    ("com.microsoft", "FusedMatMul"): bodies.product_with_transposed,
    ("com.microsoft", "CausalConvWithState"): bodies.causal_conv,
    ("com.microsoft", "LinearAttention"): bodies.linear_attention,
}
"""Operators whose body needs nothing but the node."""
NEWER = {"Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Gelu", "Swish", "LinearAttention"}
"""Operators of ONNX's own domain that none of TensorRT 8.5's parser, opset 17 or both have."""


class StandardOperators(ir.passes.InPlacePass):
    """Write every operator as its body.

    Raises: ExportError naming an operator that has none.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.functions.clear()
        writer = _Writer(model)
        nodes = [node for node in model.graph if foreign([node]) or (node.domain, node.op_type) in SIMPLE]
        for node in nodes:
            writer.write(node)
        for node in model.graph:
            _lower_version(node)
        model.graph.opset_imports[""] = OPSET
        ir.passes.common.InlinePass()(model)
        for domain in [domain for domain in model.graph.opset_imports if domain]:
            del model.graph.opset_imports[domain]
        ir.passes.common.RemoveUnusedNodesPass()(model)
        model.ir_version = _IR_VERSION
        return ir.passes.PassResult(model, bool(nodes))


def foreign(nodes: Sequence[ir.Node]) -> list[str]:
    """Return the operators among `nodes` that are not of ONNX's own domain, or too new, as ``domain::Operator``."""
    return sorted(
        {
            f"{node.domain or 'ai.onnx'}::{node.op_type}"
            for node in nodes
            if node.domain not in ("", "ai.onnx") or node.op_type in NEWER
        }
    )


@dataclass
class _Writer:
    """Turns nodes into calls of functions, which are inlined afterwards; what layers share is made once."""

    model: ir.Model
    count: int = 0
    shared: dict[tuple[object, ...], ir.Value] = field(default_factory=dict)

    def write(self, node: ir.Node) -> None:
        build = SIMPLE.get((node.domain, node.op_type))
        if build is not None:
            self._call(node, build(node), [value for value in node.inputs if value is not None])
        elif node.op_type == "GroupQueryAttention":
            self._write_attention(node)
        else:
            raise ExportError(
                f"lowering tensorrt cannot write {foreign([node])[0]} ({node.name}) in basic operators; "
                "try --lowering dense or kernel"
            )

    def _write_attention(self, node: ir.Node) -> None:
        past = node.inputs[3]
        if past is None or past.shape is None or not isinstance(past.shape[3], int):
            raise ExportError(f"{node.name}: attention without a cache of known head size has no basic form here")
        body = bodies.attention(node, past.shape[3])
        queries, keys = self._positions(node, past)
        given = [value for value in node.inputs[:5] if value is not None]
        given.append(self._bias(node, queries, keys))
        if node.attributes.get_int("do_rotary", 0):
            given += [self._angles(node, cache, queries) for cache in node.inputs[7:9]]
        self._call(node, body, given)

    def _positions(self, node: ir.Node, past: ir.Value) -> tuple[ir.Value, ir.Value]:
        if ("queries",) not in self.shared:
            ids = self._input("input_ids")
            made = self._insert(node, bodies.positions(), [ids, past], "positions")
            self.shared[("queries",)], self.shared[("keys",)] = made
        return self.shared[("queries",)], self.shared[("keys",)]

    def _bias(self, node: ir.Node, queries: ir.Value, keys: ir.Value) -> ir.Value:
        window = node.attributes.get_int("local_window_size", -1)
        key = ("bias", window)
        if key not in self.shared:
            mask = self._input("attention_mask")
            inputs = [mask, queries, keys]
            (self.shared[key],) = self._insert(node, bodies.attention_bias(window), inputs, f"bias{max(window, 0)}")
        return self.shared[key]

    def _angles(self, node: ir.Node, cache: ir.Value | None, queries: ir.Value) -> ir.Value:
        assert cache is not None
        key = ("angles", cache)
        if key not in self.shared:
            gather = ir.node("Gather", [cache, queries], {"axis": 0}, name=f"{cache.name}_of_tokens")
            gather.outputs[0].name = f"{cache.name}_of_tokens"
            self.model.graph.insert_before(node, gather)
            self.shared[key] = gather.outputs[0]
        return self.shared[key]

    def _input(self, name: str) -> ir.Value:
        for value in self.model.graph.inputs:
            if value.name == name:
                return value
        raise ExportError(f"lowering tensorrt needs the graph input {name}, found none")

    def _insert(self, before: ir.Node, body: Body, inputs: Sequence[ir.Value], name: str) -> list[ir.Value]:
        """Insert a call of `body` and return its outputs."""
        node = ir.Node(*self._function(body), inputs, num_outputs=len(body.outputs), name=name)
        for output, part in zip(node.outputs, body.outputs, strict=True):
            output.name = f"{name}_{part}"
        self.model.graph.insert_before(before, node)
        return list(node.outputs)

    def _call(self, node: ir.Node, body: Body, inputs: Sequence[ir.Value]) -> None:
        """Turn `node` into a call of `body` on `inputs`; its outputs stay."""
        if len(inputs) != len(body.inputs):
            raise ExportError(f"{node.name}: {node.op_type} with {len(inputs)} inputs has no basic form here")
        shorter = Body(inputs=body.inputs, outputs=body.outputs[: len(node.outputs)], lines=body.lines)
        node.domain, node.op_type = self._function(shorter)
        node.attributes.clear()
        node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            node.replace_input_with(index, value)

    def _function(self, body: Body) -> tuple[str, str]:
        """Register `body` as a function and return its domain and name."""
        name = f"Body{self.count}"
        self.count += 1
        text = (
            f'<opset_import: ["" : {OPSET}], domain: "{_DOMAIN}">\n'
            f"{name} ({', '.join(body.inputs)}) => ({', '.join(body.outputs)}) {{\n  " + "\n  ".join(body.lines) + "\n}"
        )
        function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        self.model.functions[function.identifier()] = function
        self.model.graph.opset_imports.setdefault(_DOMAIN, 1)
        return _DOMAIN, name


def _lower_version(node: ir.Node) -> None:
    """Bring attributes of `node` to what opset 17 has.

    Raises: ExportError where it has none for them.
    """
    if node.op_type == "Split" and "num_outputs" in node.attributes and len(node.inputs) == 1:
        del node.attributes["num_outputs"]  # equal parts, as many as there are outputs
    if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
        axes = node.inputs[1].const_value if node.inputs[1] is not None else None
        if axes is None:
            raise ExportError(f"{node.name}: {node.op_type} over computed axes has no form in opset {OPSET}")
        node.attributes["axes"] = ir.AttrInt64s("axes", axes.numpy().tolist())
        node.resize_inputs(1)
