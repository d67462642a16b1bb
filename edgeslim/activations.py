"""Hidden states of every calibration batch, kept from block to block.

On a CPU they lie in one file. On a GPU they stay where they are while that leaves it half of its memory.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class _InFile:
    """Where a batch lies in the file, in bytes, and its shape."""

    offset: int
    shape: tuple[int, ...]


class Activations:
    """Hidden states of every calibration batch, float32 [batch, seqlen, hidden]."""

    def __init__(self, path: Path) -> None:
        """`path`: the file for what no GPU holds."""
        self.path = path
        self._batches: list[Tensor | _InFile] = []
        self._end = 0
        path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, batch: Tensor) -> None:
        """Add a batch at the end."""
        if _stays(batch):
            self._batches.append(batch.detach().float().clone())
            return
        content = _bytes(batch)
        with self.path.open("ab") as file:
            file.write(content)
        self._batches.append(_InFile(self._end, tuple(batch.shape)))
        self._end += content.nbytes

    def read(self, index: int) -> Tensor:
        """Return batch `index`, the caller's to change."""
        batch = self._batches[index]
        if isinstance(batch, Tensor):
            return batch.clone()
        values = np.fromfile(self.path, dtype=np.float32, count=int(np.prod(batch.shape)), offset=batch.offset)
        return torch.from_numpy(values.reshape(batch.shape))

    def write(self, index: int, batch: Tensor) -> None:
        """Replace batch `index`."""
        old = self._batches[index]
        if isinstance(old, Tensor):
            old.copy_(batch)
            return
        with self.path.open("r+b") as file:
            file.seek(old.offset)
            file.write(_bytes(batch))


def _stays(batch: Tensor) -> bool:
    """Whether `batch` is on a GPU that keeps half of its memory free with a copy of it."""
    if not batch.is_cuda:
        return False
    free, total = torch.cuda.mem_get_info(batch.device)
    return free - 4 * batch.numel() > total / 2


def _bytes(batch: Tensor) -> memoryview:
    return memoryview(batch.detach().to("cpu", torch.float32).contiguous().numpy())  # type: ignore[arg-type]
