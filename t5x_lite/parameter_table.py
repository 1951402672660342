"""What a job keeps on each device: a table of its parameters, their sharding and bytes."""

import math

import jax

from t5x_lite.program import Program

# Of the names of a group, in characters: longer ones are counted.
_WIDTH = 40
_TITLE = ("parameter", "shape", "sharding", "MiB a device")


def lines(program: Program, grouped: bool) -> list[str]:
    """The table, a parameter a line; a stack of layers is one parameter.

    Args:
      program: the job laid out.
      grouped: parameters of one module that are alike share a line, `attention/{key,query}/kernel`, and their bytes.
    """
    groups: dict[tuple, list[str]] = {}
    total: dict[tuple, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(program.params):
        *above, own, last = ("", "", *(key.key for key in path))
        key = ("/".join(filter(None, above)), last, *(() if grouped else (own,)), leaf.shape, leaf.sharding.spec)
        groups.setdefault(key, []).append(own)
        total[key] = total.get(key, 0) + bytes_a_device(leaf)
    rows = [_TITLE]
    for key, names in groups.items():
        above, last, shape, spec = key[0], key[1], *key[-2:]
        alike = names if len(",".join(names)) < _WIDTH else (names[0], f"+{len(names) - 1}")
        own = names[0] if len(names) == 1 else f"{{{','.join(alike)}}}"
        cut = ", ".join(str(axes) if axes else "-" for axes in spec)
        rows.append(
            ("/".join(filter(None, (above, own, last))), "x".join(map(str, shape)), cut, f"{total[key] / 2**20:,.2f}")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]


def bytes_a_device(tree) -> int:
    """Bytes that one device holds of arrays or ShapeDtypeStructs."""
    return sum(_share(leaf) for leaf in jax.tree.leaves(tree))


def shown(count: float) -> str:
    """Bytes as a reader takes them in."""
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _share(leaf) -> int:
    cut = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
    return math.prod(cut) * leaf.dtype.itemsize
