"""Arrays that are read where they are needed: a checkpoint of any size passes through block by block.

Each function here gives a new array without reading anything. What is asked of one is a box, a slice with bounds
along each axis, and only what the box needs is read of what lies below.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Box = tuple[slice, ...]

# Largest part of an array in memory at a time; what it is made of may be there too.
BLOCK_BYTES = 64 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An array that is not read yet.

    Args:
      shape: of the array.
      dtype: of its elements.
      read: the elements in a box.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Box], np.ndarray]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def whole(self) -> np.ndarray:
        """All elements."""
        return self.read(full(self.shape))


def full(shape: Sequence[int]) -> Box:
    """The box of all elements."""
    return tuple(slice(0, size) for size in shape)


def of_array(array: np.ndarray) -> Lazy:
    """An array that is in memory already."""
    return Lazy(array.shape, array.dtype, lambda box: array[box])


def cast(lazy: Lazy, dtype) -> Lazy:
    """The same elements in another type."""
    dtype = np.dtype(dtype)
    if lazy.dtype == dtype:
        return lazy
    return Lazy(lazy.shape, dtype, lambda box: lazy.read(box).astype(dtype))


def viewed(lazy: Lazy, dtype) -> Lazy:
    """The same bits as elements of another type of the same size."""
    dtype = np.dtype(dtype)
    return Lazy(lazy.shape, dtype, lambda box: np.ascontiguousarray(lazy.read(box)).view(dtype))


def scaled(lazy: Lazy, factor: float) -> Lazy:
    """Every element times a number of the array's type."""
    number = lazy.dtype.type(factor)
    return Lazy(lazy.shape, lazy.dtype, lambda box: lazy.read(box) * number)


def transposed(lazy: Lazy, axes: Sequence[int] | None = None) -> Lazy:
    """As `np.transpose`."""
    axes = tuple(range(len(lazy.shape)))[::-1] if axes is None else tuple(axes)

    def read(box: Box) -> np.ndarray:
        below = [slice(0)] * len(axes)
        for axis, part in zip(axes, box):
            below[axis] = part
        return lazy.read(tuple(below)).transpose(axes)

    return Lazy(tuple(lazy.shape[a] for a in axes), lazy.dtype, read)


def layer(lazy: Lazy, index: int) -> Lazy:
    """`lazy[index]`."""
    return Lazy(lazy.shape[1:], lazy.dtype, lambda box: lazy.read((slice(index, index + 1), *box))[0])


def stacked(layers: Sequence[Lazy]) -> Lazy:
    """Arrays of one shape along a new axis in front."""

    def read(box: Box) -> np.ndarray:
        return np.stack([one.read(box[1:]) for one in layers[box[0]]])

    return Lazy((len(layers), *layers[0].shape), layers[0].dtype, read)


def joined(lazy: Lazy, axis: int) -> Lazy:
    """[..., H, K, ...] as [..., H*K, ...], H being `axis`."""
    outer, inner = lazy.shape[axis : axis + 2]

    def read(box: Box) -> np.ndarray:
        start, stop = box[axis].start, box[axis].stop
        first, last = start // inner, -(-stop // inner)
        array = lazy.read((*box[:axis], slice(first, last), slice(0, inner), *box[axis + 1 :]))
        array = array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])
        return array[(slice(None),) * axis + (slice(start - first * inner, stop - first * inner),)]

    return Lazy((*lazy.shape[:axis], outer * inner, *lazy.shape[axis + 2 :]), lazy.dtype, read)


def parted(lazy: Lazy, axis: int, inner: int) -> Lazy:
    """[..., H*K, ...] as [..., H, K, ...], K being `inner`."""

    def read(box: Box) -> np.ndarray:
        heads, width = box[axis : axis + 2]
        array = lazy.read((*box[:axis], slice(heads.start * inner, heads.stop * inner), *box[axis + 2 :]))
        array = array.reshape(*array.shape[:axis], -1, inner, *array.shape[axis + 1 :])
        return array[(slice(None),) * (axis + 1) + (width,)]

    shape = (*lazy.shape[:axis], lazy.shape[axis] // inner, inner, *lazy.shape[axis + 1 :])
    return Lazy(shape, lazy.dtype, read)


def chunk_shape(
    shape: Sequence[int], itemsize: int, limit: int | None = None, first: Sequence[int] = ()
) -> tuple[int, ...]:
    """The shape of blocks of at most `limit` bytes and much alike, made by cutting some axes before others.

    Args:
      shape: of the array; an axis of size 0 is kept.
      itemsize: bytes of an element.
      limit: see above; None: BLOCK_BYTES.
      first: the axes to cut first; then the others, the first ones before the later.
    """
    limit = BLOCK_BYTES if limit is None else limit
    chunk = [max(1, size) for size in shape]
    order = [axis for axis in first if axis < len(chunk)]
    for axis in order + [axis for axis in range(len(chunk)) if axis not in order]:
        rest = math.prod(chunk) // chunk[axis] * itemsize
        blocks = -(-chunk[axis] // max(1, limit // rest))
        whole = chunk[axis]
        chunk[axis] = -(-whole // blocks)
        if blocks < whole:
            break
    return tuple(chunk)


def boxes(shape: Sequence[int], chunk: Sequence[int]) -> Iterator[Box]:
    """The boxes of a grid of blocks, the last axis fastest."""
    starts = (range(0, size, step) for size, step in zip(shape, chunk))
    for corner in itertools.product(*starts):
        yield tuple(slice(at, min(at + step, size)) for at, step, size in zip(corner, chunk, shape))
