"""The checksum of TFRecord files, against known values and the definition."""

import numpy as np
import pytest

from t5x_lite.data import crc32c


def by_definition(data: bytes) -> int:
    """CRC-32C bit by bit (RFC 3720, B.4), then TFRecord's mask."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmasked(value: int) -> int:
    value = (value - 0xA282EAD8) & 0xFFFFFFFF
    return (value >> 17 | value << 15) & 0xFFFFFFFF


def masked(*pieces: bytes) -> list[int]:
    sizes = np.array([len(piece) for piece in pieces], np.int64)
    data = np.frombuffer(b"".join(pieces), np.uint8)
    return crc32c.masked(data, np.cumsum(sizes) - sizes, sizes).tolist()


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ],
)
def test_published_values(data, crc):
    assert unmasked(masked(data)[0]) == crc


def test_pieces_of_any_length_together():
    rng = np.random.default_rng(0)
    lengths = [*range(140), 4095, 4096, 4097, 20_000]
    pieces = [rng.integers(256, size=n, dtype=np.uint8).tobytes() for n in rng.permutation(lengths)]
    assert masked(*pieces) == [by_definition(piece) for piece in pieces]


def test_pieces_may_overlap_and_be_none():
    data = np.arange(100, dtype=np.uint8)
    found = crc32c.masked(data, np.array([0, 10, 5]), np.array([100, 20, 0]))
    assert found.tolist() == [by_definition(data.tobytes()), by_definition(data[10:30].tobytes()), by_definition(b"")]
    assert not len(crc32c.masked(data, np.array([], np.int64), np.array([], np.int64)))
