"""Models that the graph library lacks or gets wrong: state-space families and hybrids, one file a family.

Each is a module of onnxscript.nn whose parameters have transformers' names, made from transformers' configuration.
`parts`, `convolution`, `selective`, `state_space` and `attention` are what they are built of, `model` what holds them.
"""

from collections.abc import Callable
from typing import Any

from edgeslim.exporters.ssm.mamba import mamba
from edgeslim.exporters.ssm.model import CausalLM

MODELS: dict[str, Callable[[Any], CausalLM]] = {
    "falcon_mamba": mamba,
    "mamba": mamba,
}
"""How the model of a transformers configuration is made, by its `model_type`."""

__all__ = ["MODELS", "CausalLM"]
