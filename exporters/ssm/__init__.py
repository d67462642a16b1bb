"""Models that the graph library lacks or gets wrong: state-space families, hybrids, a few transformers; one file each.

Each is a module of onnxscript.nn whose parameters have transformers' names, made from transformers' configuration.
`parts`, `convolution`, `selective`, `state_space` and `attention` are what they are built of, `model` what holds them.
"""

from collections.abc import Callable
from typing import Any

from edgeslim.exporters.ssm.bamba import bamba
from edgeslim.exporters.ssm.falcon_h1 import falcon_h1
from edgeslim.exporters.ssm.gemma3 import gemma3
from edgeslim.exporters.ssm.gpt_neox import gpt_neox
from edgeslim.exporters.ssm.granite_hybrid import granite_hybrid
from edgeslim.exporters.ssm.jamba import jamba
from edgeslim.exporters.ssm.lfm2 import lfm2
from edgeslim.exporters.ssm.mamba import mamba
from edgeslim.exporters.ssm.mamba2 import mamba2
from edgeslim.exporters.ssm.model import CausalLM
from edgeslim.exporters.ssm.nemotron_h import nemotron_h
from edgeslim.exporters.ssm.opt import opt
from edgeslim.exporters.ssm.stablelm import stablelm
from edgeslim.exporters.ssm.zamba2 import zamba2

MODELS: dict[str, Callable[[Any], CausalLM]] = {
    "bamba": bamba,
    "falcon_h1": falcon_h1,
    "falcon_mamba": mamba,
    "gemma3_text": gemma3,
    "gpt_neox": gpt_neox,
    "granitemoehybrid": granite_hybrid,
    "jamba": jamba,
    "lfm2": lfm2,
    "mamba": mamba,
    "mamba2": mamba2,
    "nemotron_h": nemotron_h,
    "opt": opt,
    "stablelm": stablelm,
    "zamba2": zamba2,
}
"""How the model of a transformers configuration is made, by its `model_type`."""

__all__ = ["MODELS", "CausalLM"]
