"""Constants of a graph: added once under a name, dropped when nobody reads them."""

import onnx_ir as ir


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Return the initializer `name` of `graph`, added with `tensor` where it is not there yet."""
    if name not in graph.initializers:
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def drop_unused(graph: ir.Graph) -> None:
    """Remove the initializers of `graph` that nothing reads."""
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
