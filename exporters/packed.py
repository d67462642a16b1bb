"""Packed matrices: the numpy side of the layout that `runtime/native/packed_linear/layout.h` specifies.

A matrix W [N, K] is cut into tiles of 16 outputs and steps of 4 inputs, 64 positions a step. Before and after, one step
of a 2-output corner (the other 14 outputs all zero), bits 8, scale 1, layout bitmap:

    W = [[3, 0, 0, 5],      mask    positions 0, 3, 5      = 0b101001
         [0, -2, 0, 0]]     values  3+128, 5+128, -2+128   = 131, 133, 126

Integer values stand row by row (p = 4 * output + input), float values input by input (p = 16 * input + output), each
step from a whole byte on. A kept weight that rounds to zero is not stored: the mask of layout bitmap names q != 0.

Why a mask takes one bit a position everywhere, n:m included. Of every four positions, 2:4 has six masks: as codes of 3
bits they take 6 bytes a step, not 8, which is 0.25 bits a weight (log2 6 / 4 = 0.65 bits is the least there is; in
whole bytes a step it is 6 all the same). int3 would take 2.50 bits for 2.75, int4 3.00 for 3.25, int8 4.78 for 5.03:
10, 10 and 10 MB of the 159, 178 and 248 MB of a Llama of 362 M parameters. But int3 at 2.50 bits is a choice that
bitmaps offer as well: 58 % without a pattern is as accurate for those bits on the bundled Llama, more so on the
Mamba-2, and a form for each linear is more so (README, "Sparse or plain"), while a code costs a kernel a look-up and a
gathering of bits in every step, and instructions are what masks are short of already. Masks without a pattern cannot
shrink: at p kept they hold H(p) bits, 1.00 at 50 %, 0.97 at 40 % and 60 %, 0.88 at 70 % sparsity.

Letters: N outputs, K inputs, tiles = ceil(N / 16), steps = ceil(K / 4), groups of inputs that share a scale.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeslim.exporters.packing import F32, U8, round_codes, scales_of_blocks

Layout = Literal["dense", "bitmap", "nm"]
Array = npt.NDArray[Any]

TILE, STEP, POSITIONS, SLACK = 16, 4, 64, 64
INTEGER_BITS, FLOAT_BITS = (3, 4, 8), (16, 32)
NM_PATTERNS = ((1, 2), (1, 4), (2, 4), (3, 4))
"""Patterns n:m of layout nm: those whose every step stores the same number of weights."""

_VALUE_TYPES = {3: "u1", 4: "u1", 8: "u1", 16: "<f2", 32: "<f4"}
_UNUSED = {3: 3.5 / 8, 4: 0.25}  # bytes that a step of any number of values leaves unused, on average
_TILES_AT_ONCE = 64  # bounds temporary copies to a few MB for any matrix


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a matrix is to be stored. `group` inputs share a scale, 0: the whole row does; `pattern` is (n, m) of layout
    nm."""

    layout: Layout
    bits: int
    group: int = 0
    pattern: tuple[int, int] | None = None

    @property
    def is_integer(self) -> bool:
        """Whether values are integers with scales."""
        return self.bits in INTEGER_BITS

    def attributes(self, n: int, k: int) -> dict[str, Any]:
        """Return the attributes of the operators that describe a matrix [n, k] of this form."""
        plain: dict[str, Any] = {"layout": self.layout, "n": n, "k": k, "bits": self.bits}
        if self.group:
            plain["group"] = self.group
        if self.pattern:
            plain["pattern_n"], plain["pattern_m"] = self.pattern
        return plain


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A packed matrix [n, k]: `values` uint8 (float16 or float32 for 16 and 32 bits), `scales` float32 or float16
    [tiles, groups, 16], `masks` uint8 [tiles, steps, 8], `offsets` int64 [tiles + 1]; what the form does not
    need is None."""

    form: Form
    n: int
    k: int
    values: Array
    scales: Array | None = None
    masks: U8 | None = None
    offsets: npt.NDArray[np.int64] | None = None

    @property
    def tensors(self) -> dict[str, Array]:
        """The tensors that there are, by the name of the operators' inputs."""
        named = {"values": self.values, "scales": self.scales, "masks": self.masks, "offsets": self.offsets}
        return {name: array for name, array in named.items() if array is not None}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def stored(self) -> int:
        """Number of weights that are stored."""
        return int(np.bitwise_count(self.masks).sum()) if self.masks is not None else self.n * self.k


def pack(weight: F32, form: Form, scales: Array | None = None) -> Packed:
    """Return `weight` [N, K] in `form`. Integer values are rounded as `quantize` says, to given `scales` [N, groups]
    where there are any.

    Raises: ValueError where the form does not exist, or layout nm meets a row that keeps more than its pattern allows.
    """
    check_form(form)
    n, k = weight.shape
    if not form.is_integer:
        return _assemble(form, n, k, np.asarray(weight, np.float32), np.asarray(weight) != 0, None)
    codes, scales = quantize(weight, form, scales)
    keep = weight != 0 if form.layout == "nm" else codes != 0
    return _assemble(form, n, k, codes, keep, scales)


def quantize(weight: F32, form: Form, scales: Array | None = None) -> tuple[npt.NDArray[np.int8], Array]:
    """Return integers q [N, K] and their scales [N, groups] of `weight` [N, K]; a weight is q · scale.

    Scales that are not given are found: each takes its sign from the entry of largest magnitude in its group, which
    becomes -2^(bits-1). Scales of groups are stored in half precision (in single where that cannot hold them), and q is
    rounded to the stored scale.
    """
    block = form.group or weight.shape[1]
    stored = _found_scales(weight, form, block) if scales is None else scales if form.group else scales.astype("<f4")
    pieces = [
        round_codes(rows, stored[start : start + len(rows)].astype(np.float32), form.bits, block)
        for start, rows in zip(range(0, len(weight), _row_count()), _row_chunks(weight), strict=True)
    ]
    return np.concatenate(pieces), stored


def _found_scales(weight: F32, form: Form, block: int) -> Array:
    scales: Array = np.concatenate([scales_of_blocks(rows, form.bits, block) for rows in _row_chunks(weight)])
    if not form.group:
        return scales
    half = scales.astype(np.float16)
    return half if np.isfinite(half).all() and (half != 0).all() else scales


def unpack(packed: Packed) -> F32:
    """Return the weights [N, K] that `packed` stands for."""
    form, steps = packed.form, -(-packed.k // STEP)
    tiles = -(-packed.n // TILE)
    full = np.zeros((tiles, steps, POSITIONS), np.float32)
    keep = _mask_bits(packed, tiles, steps)
    stored = _stored_values(packed, keep)
    full[keep] = stored
    if form.is_integer:
        grid = full.reshape(tiles, steps, TILE, STEP).transpose(0, 2, 1, 3).reshape(tiles * TILE, steps * STEP)
        assert packed.scales is not None
        rows = packed.scales.astype(np.float32).transpose(0, 2, 1).reshape(tiles * TILE, -1)
        grid = grid * np.repeat(rows, form.group or steps * STEP, axis=1)[:, : steps * STEP]
    else:
        grid = full.reshape(tiles, steps, STEP, TILE).transpose(0, 3, 1, 2).reshape(tiles * TILE, steps * STEP)
    return np.ascontiguousarray(grid[: packed.n, : packed.k])


def rounded(weight: F32, form: Form) -> F32:
    """Return `weight` [N, K] as it is after packing and unpacking."""
    if form.bits == 32:
        return weight
    if form.bits == 16:
        return weight.astype(np.float16).astype(np.float32)
    codes, scales = quantize(weight, form)
    spread = np.repeat(scales.astype(np.float32), form.group or weight.shape[1], axis=1)[:, : weight.shape[1]]
    return np.asarray(codes * spread, np.float32)


def packed_bytes(n: int, k: int, form: Form, density: float) -> int:
    """Return about how many bytes a matrix [n, k] takes whose share `density` of weights is not zero."""
    tiles, steps = -(-n // TILE), -(-k // STEP)
    positions = tiles * steps * POSITIONS
    groups = -(-k // form.group) if form.group else 1
    scales = tiles * TILE * groups * (2 if form.group else 4) if form.is_integer else 0
    if form.layout == "dense":
        return positions * form.bits // 8 + scales
    kept = form.pattern[0] / form.pattern[1] if form.pattern else density
    unused = 0 if form.pattern else tiles * steps * _UNUSED.get(form.bits, 0)
    return math.ceil(positions * (kept * form.bits + 1) / 8 + unused) + scales


def pattern_of(weight: Array) -> tuple[int, int] | None:
    """Return the pattern (n, m) of layout nm that `weight` [N, K] follows most closely, None where it follows none."""
    keep = weight != 0
    for n, m in sorted(NM_PATTERNS, key=lambda pattern: pattern[0] / pattern[1]):
        if weight.shape[1] % m == 0 and (keep.reshape(len(weight), -1, m).sum(axis=-1) <= n).all():
            return n, m
    return None


def check_form(form: Form) -> None:
    """Raise ValueError unless the form is one that the operators know."""
    if form.bits not in (*INTEGER_BITS, *FLOAT_BITS):
        raise ValueError(f"bits must be 3, 4, 8, 16 or 32, got {form.bits}")
    if form.group % STEP or form.group < 0 or (form.group and not form.is_integer):
        raise ValueError(f"group must be 0 or a positive multiple of 4, and 0 for float values, got {form.group}")
    if (form.layout == "nm") != (form.pattern in NM_PATTERNS):
        raise ValueError(f"layout nm goes with one of the patterns {NM_PATTERNS}, got {form.layout} and {form.pattern}")


def _assemble(form: Form, n: int, k: int, entries: Array, keep: Array, scales: Array | None) -> Packed:
    """Return the packed matrix of `entries` [n, k] (integers q, or floats) of which `keep` [n, k] are stored."""
    tiles = -(-n // TILE)
    values, masks, sizes = [], [], []
    for first in range(0, tiles, _TILES_AT_ONCE):
        rows = slice(first * TILE, min((first + _TILES_AT_ONCE) * TILE, n))
        kept = _tiled(_exactly(keep[rows], form) if form.layout != "dense" else None, keep[rows].shape, form)
        payload, bytes_of_tiles = _payload(_tiled(entries[rows], keep[rows].shape, form), kept, form)
        values.append(payload)
        masks.append(np.packbits(kept, axis=-1, bitorder="little"))
        sizes.append(bytes_of_tiles)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    return Packed(
        form=form,
        n=n,
        k=k,
        values=np.concatenate([*values, np.zeros(SLACK, np.uint8)]).view(_VALUE_TYPES[form.bits]),
        scales=None if scales is None else _tiled_scales(scales, tiles),
        masks=None if form.layout == "dense" else np.concatenate(masks),
        offsets=offsets if form.layout == "bitmap" else None,
    )


def _exactly(keep: Array, form: Form) -> Array:
    """Return `keep` [n, k] filled up so that layout nm finds exactly n of every m in it."""
    if form.pattern is None:
        return keep
    n, m = form.pattern
    if keep.shape[1] % m:
        raise ValueError(f"layout nm of {n}:{m} needs a multiple of {m} inputs, got {keep.shape[1]}")
    groups = keep.reshape(-1, m).copy()
    lacking = n - groups.sum(axis=1)
    if (lacking < 0).any():
        raise ValueError(f"layout nm of {n}:{m} met a group that keeps more than {n} of {m}")
    for place in range(m):
        fill = (lacking > 0) & ~groups[:, place]
        groups[fill, place] = True
        lacking -= fill
    return groups.reshape(keep.shape)


def _tiled(matrix: Array | None, shape: tuple[int, ...], form: Form) -> Array:
    """Return `matrix` [n, k] as [tiles, steps, 64] in the order of the form's values.

    Padding is zero; of a mask it follows the pattern. None stands for a mask that is true everywhere.
    """
    tiles, steps = -(-shape[0] // TILE), -(-shape[1] // STEP)
    if matrix is None:
        return np.ones((tiles, steps, POSITIONS), bool)
    grid = np.zeros((tiles * TILE, steps * STEP), matrix.dtype)
    if matrix.dtype == bool and form.pattern:
        grid[:] = np.arange(steps * STEP) % form.pattern[1] < form.pattern[0]
    grid[: shape[0], : shape[1]] = matrix
    parts = grid.reshape(tiles, TILE, steps, STEP)
    order = (0, 2, 1, 3) if form.is_integer else (0, 2, 3, 1)
    tiled: Array = parts.transpose(order).reshape(tiles, steps, POSITIONS)
    return tiled


def _payload(entries: Array, kept: Array, form: Form) -> tuple[U8, npt.NDArray[np.int64]]:
    """Return the bytes of the stored `entries` [tiles, steps, 64] and how many each tile takes."""
    counts = kept.sum(axis=-1)
    if form.bits == 32:
        stored: Array = entries[kept].astype("<f4").view(np.uint8)
    elif form.bits == 16:
        stored = entries[kept].astype("<f2").view(np.uint8)
    elif form.bits == 8:
        stored = (entries[kept].astype(np.int16) + 128).astype(np.uint8)
    else:
        stored = _fields((entries[kept] + (1 << (form.bits - 1))).astype(np.uint8), counts.reshape(-1), form.bits)
    return stored, (-(-counts * form.bits // 8)).sum(axis=1).astype(np.int64)


def _fields(codes: U8, counts: Array, bits: int) -> U8:
    """Return the bytes of `codes` of 3 or 4 bits, of which each step has `counts` [steps]: eight codes in `bits` bytes,
    the first in the lowest bits, each step from a whole byte on."""
    slots = np.zeros((len(counts), POSITIONS), np.uint8)
    slots[np.arange(POSITIONS) < counts[:, None]] = codes
    eights = slots.reshape(-1, 8).astype(np.uint32) << (bits * np.arange(8, dtype=np.uint32))
    words = np.bitwise_or.reduce(eights, axis=1).astype("<u4")
    padded = words.view(np.uint8).reshape(-1, 4)[:, :bits].reshape(len(counts), -1)
    return np.ascontiguousarray(padded[_used_bytes(counts, bits)])


def _codes_of_fields(values: U8, counts: Array, bits: int) -> U8:
    """Return what `_fields` was given; `values` may go on after it."""
    used = _used_bytes(counts, bits)
    padded = np.zeros(used.shape, np.uint8)
    padded[used] = values[: np.count_nonzero(used)]
    words = np.zeros((padded.size // bits, 4), np.uint8)
    words[:, :bits] = padded.reshape(-1, bits)
    slots = (words.view("<u4") >> (bits * np.arange(8, dtype=np.uint32))).reshape(len(counts), POSITIONS)
    return np.asarray(slots[np.arange(POSITIONS) < counts[:, None]] & ((1 << bits) - 1), np.uint8)


def _used_bytes(counts: Array, bits: int) -> Array:
    """Return which of a step's `POSITIONS * bits / 8` bytes are stored: [steps, bytes]."""
    used: Array = np.arange(POSITIONS * bits // 8) < -(-counts[:, None] * bits // 8)
    return used


def _tiled_scales(scales: Array, tiles: int) -> Array:
    """Return scales [n, groups] as [tiles, groups, 16]; rows of padding get 0."""
    padded = np.zeros((tiles * TILE, scales.shape[1]), scales.dtype)
    padded[: len(scales)] = scales
    return np.ascontiguousarray(padded.reshape(tiles, TILE, -1).transpose(0, 2, 1))


def _mask_bits(packed: Packed, tiles: int, steps: int) -> Array:
    if packed.masks is None:
        return np.ones((tiles, steps, POSITIONS), bool)
    return np.unpackbits(packed.masks, axis=-1, bitorder="little").astype(bool)


def _stored_values(packed: Packed, keep: Array) -> Array:
    """Return the stored values in order, as float32 (integers without their scale)."""
    values, bits, count = packed.values, packed.form.bits, int(keep.sum())
    if bits >= 8:
        return values[:count].astype(np.float32) - (128 if bits == 8 else 0)
    return _codes_of_fields(values, keep.sum(axis=-1).reshape(-1), bits).astype(np.float32) - (1 << (bits - 1))


def _row_count() -> int:
    return _TILES_AT_ONCE * TILE


def _row_chunks(weight: F32) -> Iterator[F32]:
    for start in range(0, len(weight), _row_count()):
        yield np.ascontiguousarray(weight[start : start + _row_count()], dtype=np.float32)
