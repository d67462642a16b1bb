"""A causal language model from embedding to logits, with the states of each layer in and out.

A layer is called with (op, x, past, context) and returns its output and the states after it; what states it has is
its `states`: name to shape without the batch, None for the number of tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import OpBuilder, nn
from torch import Tensor

from edgeslim.exporters.ssm.attention import Lengths, lengths_of
from edgeslim.exporters.ssm.parts import Embedding, Linear, scaled

States = dict[str, ir.Value]
Shapes = dict[str, tuple[int | None, ...]]


_BASES = ("model.decoder.", "decoder.", "model.", "backbone.", "gpt_neox.")
"""How checkpoints begin the names of the base model's parameters, where they do not leave it out."""


@dataclass(frozen=True)
class Context:
    """What every layer may read: lengths for attention (None: no layer has any), rotations, the embedded tokens."""

    lengths: Lengths | None
    rotary: Any
    embedded: ir.Value

    @property
    def attention(self) -> tuple[Lengths, Any]:
        """The further arguments of an Attention."""
        assert self.lengths is not None
        return self.lengths, self.rotary


class Layer(nn.Module):
    """Norm, mixer, residual; `mixer` and `norm` name its parts."""

    def __init__(self, norm: tuple[str, nn.Module], mixer: tuple[str, nn.Module]) -> None:
        super().__init__()
        self.norm_name, self.mixer_name = norm[0], mixer[0]
        setattr(self, *norm)
        setattr(self, *mixer)
        self.states: Shapes = dict(getattr(mixer[1], "states", {}))

    def forward(
        self,
        op: OpBuilder,
        x: ir.Value,
        past: Mapping[str, ir.Value],
        context: Context,
        beside: ir.Value | None = None,
    ) -> tuple[ir.Value, States]:
        """`beside` is added to what the norm sees, not to the residual."""
        normed = getattr(self, self.norm_name)(op, x if beside is None else op.Add(x, beside))
        y, states = mixed(op, getattr(self, self.mixer_name), normed, past, context)
        return op.Add(x, y), states


class ParallelLayer(nn.Module):
    """Residual, mixer and feed-forward side by side, each after a norm of its own or both after the only one."""

    def __init__(
        self,
        *,
        norms: Sequence[tuple[str, nn.Module]],
        mixer: tuple[str, nn.Module],
        feed_forward: tuple[str, nn.Module],
    ) -> None:
        super().__init__()
        self.norm_names = [name for name, _ in norms]
        self.names = (mixer[0], feed_forward[0])
        for part in (*norms, mixer, feed_forward):
            setattr(self, *part)
        self.states: Shapes = dict(getattr(mixer[1], "states", {}))

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        normed = [getattr(self, name)(op, x) for name in self.norm_names]
        mixer, feed_forward = (getattr(self, name) for name in self.names)
        y, states = mixed(op, mixer, normed[0], past, context)
        return op.Add(x, op.Add(y, feed_forward(op, normed[-1]))), states


class TwoStepLayer(nn.Module):
    """Norm, mixer, residual; norm, feed-forward, residual. Each part comes with its name; `scale` is the residuals'."""

    def __init__(
        self,
        *,
        norms: Sequence[tuple[str, nn.Module]],
        mixer: tuple[str, nn.Module],
        feed_forward: tuple[str, nn.Module],
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.names = (norms[0][0], mixer[0], norms[1][0], feed_forward[0])
        for part in (norms[0], mixer, norms[1], feed_forward):
            setattr(self, *part)
        self.scale = scale
        self.states: Shapes = dict(getattr(mixer[1], "states", {}))

    def forward(
        self, op: OpBuilder, x: ir.Value, past: Mapping[str, ir.Value], context: Context
    ) -> tuple[ir.Value, States]:
        first, mixer, second, feed_forward = (getattr(self, name) for name in self.names)
        y, states = mixed(op, mixer, first(op, x), past, context)
        x = op.Add(x, scaled(op, y, self.scale))
        y = feed_forward(op, second(op, x))
        return op.Add(x, scaled(op, y, self.scale)), states


def mixed(
    op: OpBuilder, mixer: nn.Module, x: ir.Value, past: Mapping[str, ir.Value], context: Context
) -> tuple[ir.Value, States]:
    """Call a mixer of any kind: attention, recurrent, or without a state."""
    states = getattr(mixer, "states", {})
    if not states:
        return mixer(op, x), {}
    return mixer(op, x, past, *(context.attention if "key" in states else ()))


class Backbone(nn.Module):
    """Embedding, layers, final norm. `embedding` and `norm` name their parts; `rotary` None: no rotations."""

    def __init__(
        self,
        *,
        embedding: tuple[str, Embedding],
        layers: Sequence[nn.Module],
        norm: tuple[str, nn.Module],
        rotary: nn.Module | None = None,
        embedding_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.embedding_name, self.norm_name = embedding[0], norm[0]
        setattr(self, *embedding)
        self.layers = nn.ModuleList(list(layers))
        setattr(self, *norm)
        self.rotary_emb = rotary
        self.embedding_scale = embedding_scale

    def embedded(self, op: OpBuilder, ids: ir.Value, mask: ir.Value | None) -> ir.Value:
        """What enters the first layer."""
        return scaled(op, getattr(self, self.embedding_name)(op, ids), self.embedding_scale)

    def forward(
        self, op: OpBuilder, ids: ir.Value, mask: ir.Value | None, past: Sequence[Mapping[str, ir.Value]]
    ) -> tuple[ir.Value, list[States]]:
        x = self.embedded(op, ids, mask)
        context = Context(
            lengths=None if mask is None else lengths_of(op, mask),
            rotary=None if self.rotary_emb is None else self.rotary_emb(op),
            embedded=x,
        )
        presents = []
        for layer, states in zip(self.layers, past, strict=True):
            x, present = layer(op, x, states, context)
            presents.append(present)
        return getattr(self, self.norm_name)(op, x), presents


class CausalLM(nn.Module):
    """A backbone under the name `base` and a head, whose weight is the embedding's where `tied`."""

    def __init__(
        self, base: str, backbone: Backbone, *, vocabulary: int, hidden: int, tied: bool, logit_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.base, self.tied, self.logit_scale = base, tied, logit_scale
        setattr(self, base, backbone)
        self.lm_head = Linear(hidden, vocabulary)
        if tied:
            self.lm_head.weight = getattr(backbone, backbone.embedding_name).weight

    @property
    def states(self) -> list[Shapes]:
        """The states of each layer."""
        return [layer.states for layer in getattr(self, self.base).layers]

    def named_weights(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a checkpoint's `tensors` by the names of this model's parameters.

        Checkpoints may have been saved with or without the name of the base model; a tied head goes.
        """
        found = {self._own_name(name): tensor for name, tensor in tensors.items()}
        if self.tied:
            embedding = f"{self.base}.{getattr(self, self.base).embedding_name}.weight"
            head = found.pop("lm_head.weight", None)
            if head is not None:
                found.setdefault(embedding, head)
        rotary = getattr(self, self.base).rotary_emb
        order = None if rotary is None else rotary.order
        for path, module in self.named_modules():
            prepare = getattr(module, "prepare", None)
            if prepare is not None:
                own = {n.removeprefix(f"{path}."): found[n] for n in found if n.startswith(f"{path}.")}
                found.update({f"{path}.{name}": tensor for name, tensor in prepare(own, order).items()})
        return found

    def _own_name(self, name: str) -> str:
        if name.startswith(("lm_head.", "embed_out.")):
            return name.replace("embed_out.", "lm_head.")
        prefix = next((prefix for prefix in _BASES if name.startswith(prefix)), "")
        return f"{self.base}.{name.removeprefix(prefix)}"

    def forward(
        self, op: OpBuilder, ids: ir.Value, mask: ir.Value | None, past: Sequence[Mapping[str, ir.Value]]
    ) -> tuple[ir.Value, list[States]]:
        x, presents = getattr(self, self.base)(op, ids, mask, past)
        return scaled(op, self.lm_head(op, x), self.logit_scale), presents
