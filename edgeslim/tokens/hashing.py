"""A counter-based random number for (seed, layer, position), in integer operations that ONNX has too.

Four rounds of ``x <- (x + key)**5 mod p`` with p = 2**31 - 1, the construction of the cipher MiMC (IACR ePrint
2016/492). Since 5 does not divide p - 1 each round is a permutation of [0, p): different positions never collide. All
products stay below 2**62, so int64 suffices: Add, Mul, Mod.
"""

import torch
from torch import Tensor

PRIME = (1 << 31) - 1
ROUNDS = 4
_INCREMENT = 0x9E3779B97F4A7C15  # splitmix64's, from the golden ratio
_MASK = (1 << 64) - 1


def round_keys(seed: int, layer: int) -> tuple[int, ...]:
    """Return the `ROUNDS` keys in [0, p) for `seed` and `layer`, by splitmix64: constants of a graph."""
    state = (seed * 0xD1342543DE82EF95 + layer + 1) & _MASK
    keys = []
    for _ in range(ROUNDS):
        state = (state + _INCREMENT) & _MASK
        mixed = state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        keys.append((mixed ^ (mixed >> 31)) % PRIME)
    return tuple(keys)


def random_scores(tokens: int, *, seed: int, layer: int, device: torch.device | None = None) -> Tensor:
    """Return int64 scores [N] in [0, p) for the positions 0 … N-1 = `tokens` - 1, no two alike."""
    score = torch.arange(tokens, dtype=torch.int64, device=device)
    for key in round_keys(seed, layer):
        score = (score + key) % PRIME
        square = score * score % PRIME
        score = square * square % PRIME * score % PRIME
    return score
