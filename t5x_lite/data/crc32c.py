"""The checksum of TFRecord files, CRC-32C masked, of many pieces of a file at once in numpy.

A CRC is linear: that of a chunk is the exclusive or of what each of its bytes makes alone, and that of a piece is made
of those of its chunks, each moved on by the bytes behind it. So one table lookup is made for all chunks together.
"""

import functools

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_CHUNK = 64  # bytes


def masked(data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The checksums of pieces of `data`, as TFRecord files hold them: rotated by 15 bits, and a constant added.

    Args:
      data: uint8 [n].
      starts, sizes: int64 [pieces].

    Returns:
      uint32 [pieces].
    """
    if not len(sizes):
        return np.zeros(0, np.uint32)
    # Zeros in front of a piece change nothing, so that every piece is whole chunks.
    chunks = np.maximum(-(-sizes // _CHUNK), 1)
    ends = np.cumsum(chunks)
    filled = np.zeros(int(ends[-1]) * _CHUNK, np.uint8)
    for start, size, end in zip(starts.tolist(), sizes.tolist(), (ends * _CHUNK).tolist()):
        filled[end - size : end] = data[start : start + size]
        filled[end - size : min(end - size + 4, end)] ^= 0xFF  # what a CRC starts from
    crc = _of_chunks(filled.reshape(-1, _CHUNK))
    behind = np.repeat(ends, chunks) - 1 - np.arange(ends[-1])
    for power in range(int(behind.max()).bit_length()):
        moved = np.flatnonzero(behind >> power & 1)
        crc[moved] = _lookup(crc[moved], _moved_by(power))
    crc = np.bitwise_xor.reduceat(crc, ends - chunks)
    # Of a piece shorter than 4 bytes a part of the start is left over.
    crc ^= (np.uint64(0xFFFFFFFF) >> (8 * np.minimum(sizes, 4)).astype(np.uint64)).astype(np.uint32)
    crc ^= np.uint32(0xFFFFFFFF)
    return (crc >> 15 | crc << 17) + np.uint32(0xA282EAD8)


def _of_chunks(chunks: np.ndarray) -> np.ndarray:
    crc = np.zeros(len(chunks), np.uint32)
    for place, table in enumerate(_tables()):
        crc ^= table[chunks[:, place]]
    return crc


@functools.cache
def _tables() -> np.ndarray:
    """What each byte makes at each place of a chunk, uint32 [_CHUNK, 256]."""
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = last >> 1 ^ np.where(last & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    tables = [last]
    for _ in range(_CHUNK - 1):
        tables.append(tables[-1] >> 8 ^ last[tables[-1] & 0xFF])
    return np.stack(tables[::-1])


@functools.cache
def _moved_by(power: int) -> np.ndarray:
    """What each byte of a CRC makes with 2 ** power chunks of zeros behind it, uint32 [4, 256]."""
    if not power:
        return _tables()[:4]
    half = _moved_by(power - 1)
    return _lookup(half, half)


def _lookup(crc: np.ndarray, tables: np.ndarray) -> np.ndarray:
    return functools.reduce(np.bitwise_xor, (tables[k][crc >> (8 * k) & 0xFF] for k in range(4)))
