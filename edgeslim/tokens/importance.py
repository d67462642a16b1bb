"""How important tokens are. Letters: B batch, N tokens, D channels, G heads, W queries that look back.

Source: "Rethinking Token Reduction for State Space Models" (arXiv 2410.14725), eq. 5 and table 4, for the metrics of
the scan's output; for keys, "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression" (2406.11430);
for attention received, "SnapKV" (2404.14469), which also lets the end of the prompt ask.
"""

import torch
from torch import Tensor


def scan_importance(y: Tensor, metric: str) -> Tensor:
    """Return the importance [B, N] of tokens by what the mixer makes of them, `y` [B, N, D].

    clip: mean of max(0, y); l1: mean of |y|; l2: root of the mean of y²; none: mean of y.
    """
    if metric == "clip":
        return y.clamp(min=0).mean(-1)
    if metric == "l1":
        return y.abs().mean(-1)
    if metric == "l2":
        return (y * y).mean(-1).sqrt()
    if metric == "none":
        return y.mean(-1)
    raise ValueError(metric)


def key_importance(keys: Tensor) -> Tensor:
    """Return the importance [B, N] of tokens by their `keys` [B, G, N, D]: minus the mean length over heads.

    Short keys are those that attention goes to.
    """
    return -(keys * keys).sum(-1).sqrt().mean(1)


def attention_importance(weights: Tensor) -> Tensor:
    """Return the importance [B, N] of tokens by the attention they receive from the last queries.

    weights: [B, G, W, N], rows of a softmax; query w is the token N - W + w. The mean over heads, and over the queries
    that can see a token.
    """
    looking, tokens = weights.shape[-2:]
    received = weights.mean(1).sum(1)
    seen_by = (tokens - torch.arange(tokens, device=weights.device)).clamp(max=looking)
    return received / seen_by
