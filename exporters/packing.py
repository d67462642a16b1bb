"""Weights as blocks of small integers: the numpy side of the stock operators' layout.

Each row of a matrix is cut into blocks of `block` inputs (the last one padded with zeros); a block is stored as
integers q of `bits` bits and one float32 scale s, standing for q·s. Two's complement leaves one more step on the
negative side, so the scale takes its sign from the entry of largest magnitude: that entry becomes -2^(bits-1), zero
stays exactly zero.

Stored as com.microsoft::MatMulNBits and GatherBlockQuantized read them (zero point 2^(bits-1), not stored):
codes uint8 [N, blocks, block·bits/8] with the lower nibble first, scales float32 [N, blocks].

Letters: N outputs (rows), K inputs (columns).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_ROWS_AT_ONCE = 1024  # bounds the temporary copies to a few MB for any matrix
_TINY = np.float32(np.finfo(np.float32).tiny)


def block_scales(weight: F32, bits: int, block: int) -> F32:
    """Return the scales [N, blocks] of `weight` [N, K]: the largest entry of a block over -2^(bits-1)."""
    return np.concatenate([_scales(_blocks(rows, block), bits) for rows in _chunks(weight)])


def pack_codes(weight: F32, bits: int, block: int) -> U8:
    """Return the stored codes [N, blocks, block·bits/8] of `weight` [N, K]; `bits` is 4 or 8."""
    return np.concatenate([_pack(_codes(_blocks(rows, block), bits)[0], bits) for rows in _chunks(weight)])


def store_codes(codes: npt.NDArray[np.int8], bits: int, block: int) -> U8:
    """Return integers [N, K] as stored codes [N, blocks, block·bits/8]; the last block is filled up with zeros."""
    return np.concatenate(
        [
            _pack(_blocks(codes[start : start + _ROWS_AT_ONCE].astype(np.float32), block), bits)
            for start in range(0, len(codes), _ROWS_AT_ONCE)
        ]
    )


def unpack(codes: U8, scales: F32, bits: int, columns: int) -> F32:
    """Return the weights [N, K=columns] that `codes` [N, blocks, bytes] and `scales` [N, blocks] stand for."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:2], -1)
    values = (codes.astype(np.float32) - np.float32(1 << (bits - 1))) * scales[..., None]
    return np.ascontiguousarray(values.reshape(len(codes), -1)[:, :columns])


def round_to_blocks(weight: F32, bits: int, block: int) -> F32:
    """Return `weight` [N, K] as it is after packing and unpacking."""

    def rounded(rows: F32) -> F32:
        codes, scales = _codes(_blocks(rows, block), bits)
        return np.asarray((codes * scales[..., None]).reshape(len(rows), -1)[:, : rows.shape[1]])

    return np.concatenate([rounded(rows) for rows in _chunks(weight)])


def packed_shape(rows: int, columns: int, bits: int, block: int) -> tuple[int, int, int]:
    """Return the shape of the codes of a [rows, columns] matrix."""
    return rows, -(-columns // block), block * bits // 8


def scales_of_blocks(rows: F32, bits: int, block: int) -> F32:
    """Return the scales [n, blocks] of `rows` [n, K], all at once."""
    return _scales(_blocks(rows, block), bits)


def round_codes(rows: F32, scales: F32, bits: int, block: int) -> npt.NDArray[np.int8]:
    """Return `rows` [n, K] as signed integers in units of the given `scales` [n, blocks]."""
    half = 1 << (bits - 1)
    codes = np.clip(np.rint(_blocks(rows, block) / scales[..., None]), -half, half - 1)
    return np.ascontiguousarray(codes.reshape(len(rows), -1)[:, : rows.shape[1]]).astype(np.int8)


def _chunks(weight: F32) -> Iterator[F32]:
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        yield np.ascontiguousarray(weight[start : start + _ROWS_AT_ONCE], dtype=np.float32)


def _blocks(rows: F32, block: int) -> F32:
    """Return `rows` [n, K] as [n, blocks, block], padded with zeros."""
    count = -(-rows.shape[1] // block)
    padded = np.pad(rows, ((0, 0), (0, count * block - rows.shape[1])))
    return padded.reshape(len(rows), count, block)


def _scales(blocks: F32, bits: int) -> F32:
    high, low = blocks.max(axis=-1), blocks.min(axis=-1)
    largest = np.where(high > -low, high, low)
    scales = largest / np.float32(-(1 << (bits - 1)))
    return np.where(np.abs(scales) < _TINY, np.float32(1), scales).astype(np.float32)


def _codes(blocks: F32, bits: int) -> tuple[F32, F32]:
    """Return signed codes (as float32) [n, blocks, block] and scales [n, blocks]."""
    scales, half = _scales(blocks, bits), 1 << (bits - 1)
    codes = np.clip(np.rint(blocks / scales[..., None]), -half, half - 1)
    return codes.astype(np.float32), scales


def _pack(codes: F32, bits: int) -> U8:
    unsigned: U8 = (codes + (1 << (bits - 1))).astype(np.uint8)
    if bits == 8:
        return unsigned
    low, high = unsigned[..., 0::2], unsigned[..., 1::2]
    return (low | (high << 4)).astype(np.uint8)
