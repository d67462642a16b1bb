"""The reduction that a checkpoint's config.json asks for, on its way into the graph."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeslim.errors import ExportError
from edgeslim.exporters.passes.reduce_tokens import ReduceTokens
from edgeslim.runtime.manifest import ENGINES
from edgeslim.tokens.flops import FAMILIES
from edgeslim.tokens.plan import ReductionPlan, plan_of_config


def reduction_of(config: Mapping[str, Any], checkpoint: Path) -> ReductionPlan | None:
    """Return the plan that `config`, the config.json of `checkpoint`, asks for; None where it asks for none.

    Raises: RecipeError or CheckpointError for a plan that cannot be meant, ExportError for a family without reduction.
    """
    plan = plan_of_config(config, checkpoint / "config.json")
    if plan is None or not plan.layers:
        return None
    if config.get("model_type") not in FAMILIES:
        raise ExportError(
            f"{checkpoint}: reduces tokens, and its type is {config.get('model_type')!r}; "
            f"the graph can do so for {', '.join(FAMILIES)}"
        )
    return plan


def reduction_passes(plan: ReductionPlan | None, config: Mapping[str, Any]) -> list[ir.passes.InPlacePass]:
    """Return the passes that put `plan` into a graph before it is lowered."""
    return [] if plan is None else [ReduceTokens(plan, config["num_hidden_layers"])]


def fitting_engines(plan: ReductionPlan | None, graph: ir.Graph) -> tuple[str, ...]:
    """Return the engines that can run `graph`: onnxruntime-genai wants the caches of all layers equally long."""
    caches = any((value.name or "").endswith(".key") for value in graph.inputs)
    return ("ort",) if plan is not None and caches else ENGINES
