"""Many products with one matrix, by the library inside torch that is fast at them.

In float32 on CPUs with AVX-512, oneDNN takes them: on AMD's it is more than twice as fast as MKL, which torch's own
product calls (measured on Zen 5: 245 against 110 GFLOP/s a core, with equal rounding). The choice depends on the
machine alone, never on a measurement, so that a resumed run repeats every bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS = 512  # at a time: oneDNN takes its input and gives its output as copies

Product = Callable[[Tensor], Tensor]


def times_transposed(matrix: Tensor) -> Product:
    """z -> z · matrixᵀ for any z [rows, in]; a symmetric matrix is its own transpose.  matrix: [out, in]."""
    if not _by_onednn(matrix):
        return lambda z: z @ matrix.T
    outputs, packed = matrix.shape[0], matrix.contiguous().to_mkldnn()

    def product(z: Tensor) -> Tensor:
        out = z.new_empty(z.shape[0], outputs)
        for some, into in zip(z.split(ROWS), out.split(ROWS), strict=True):
            into.copy_(linear(some.contiguous().to_mkldnn(), packed).to_dense())
        return out

    return product


def _by_onednn(matrix: Tensor) -> bool:
    """Whether oneDNN can, and is known to be as fast as torch's own product or faster."""
    return (
        matrix.device.type == "cpu"
        and matrix.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )
