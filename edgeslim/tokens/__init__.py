"""Token reduction: fewer tokens in the later blocks of a prompt's prefill. Names are imported on first use."""

from edgeslim.lazy import lazy_names

_HOME = {
    "ReductionPlan": "plan",
    "Step": "step",
    "choose": "methods",
    "plan_of_config": "plan",
}

__all__ = sorted(_HOME)
__getattr__, __dir__ = lazy_names(__name__, _HOME)
