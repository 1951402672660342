"""Arrays that are read part by part are those of numpy, in every part."""

import math

import numpy as np
import pytest

from t5x_lite.interop import lazy

ARRAY = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
BASE = lazy.of_array(ARRAY)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lazy.transposed(BASE), ARRAY.T),
        (lazy.transposed(BASE, (1, 3, 0, 2)), ARRAY.transpose(1, 3, 0, 2)),
        (lazy.layer(BASE, 1), ARRAY[1]),
        (lazy.stacked([lazy.layer(BASE, 1), lazy.layer(BASE, 0)]), ARRAY[::-1]),
        (lazy.joined(BASE, 0), ARRAY.reshape(6, 4, 5)),
        (lazy.joined(BASE, 2), ARRAY.reshape(2, 3, 20)),
        (lazy.parted(lazy.joined(BASE, 1), 1, 4), ARRAY),
        (lazy.parted(BASE, 2, 2), ARRAY.reshape(2, 3, 2, 2, 5)),
        (lazy.scaled(BASE, 0.5), ARRAY * np.float32(0.5)),
        (lazy.cast(BASE, np.float16), ARRAY.astype(np.float16)),
        (lazy.viewed(BASE, np.int32), ARRAY.view(np.int32)),
    ],
)
def test_every_part(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(found.whole(), expected)
    for _ in range(30):
        bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in expected.shape]
        box = tuple(slice(int(start), int(stop)) for start, stop in bounds)
        np.testing.assert_array_equal(found.read(box), expected[box], err_msg=str(box))


@pytest.mark.parametrize("shape", [(), (7,), (1, 13), (5, 7, 11), (3, 1, 9, 2), (0, 4)])
@pytest.mark.parametrize("first", [(), (1, 0)])
@pytest.mark.parametrize("limit", [1, 8, 60, 500, 10**6])
def test_blocks_are_small_and_cover_all_in_order(shape, first, limit):
    chunk = lazy.chunk_shape(shape, 4, limit, first)
    assert math.prod(chunk) * 4 <= max(limit, 4)
    array = np.arange(math.prod(shape)).reshape(shape)
    parts = [array[box] for box in lazy.boxes(shape, chunk)]
    assert sum(part.size for part in parts) == array.size
    seen = np.concatenate([part.reshape(-1) for part in parts]) if parts else array.reshape(-1)
    if first:
        seen = np.sort(seen)
    np.testing.assert_array_equal(seen, array.reshape(-1))
