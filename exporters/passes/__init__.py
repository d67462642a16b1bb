"""Graph passes, one a file, and how a list of them is run."""

from collections.abc import Sequence

import onnx_ir as ir

from edgeslim.errors import ExportError


def run_passes(model: ir.Model, passes: Sequence[ir.passes.InPlacePass]) -> ir.Model:
    """Run `passes` on `model` in order and return it.

    Raises: ExportError naming the pass that failed and those before it.
    """
    done: list[str] = []
    for step in passes:
        name = type(step).__name__
        try:
            step(model)
        except Exception as fault:  # onnx_ir wraps what a pass raises into errors of its own
            before = f" after {', '.join(done)}" if done else ""
            raise ExportError(f"graph pass {name}{before}: {_cause(fault)}") from fault
        done.append(name)
    return model


def _cause(fault: BaseException) -> BaseException:
    return fault.__cause__ if isinstance(fault, ir.passes.PassError) and fault.__cause__ else fault
