"""The mesh and the rules that lay logical axes onto it, both from gin.

Logical axis names, all that the model uses:
  batch   rows of a batch
  length  positions of a sequence
  embed   the residual stream of a parameter (d_model)
  heads   attention heads, joined with their width in the kernels
  mlp     the hidden width of the feed-forward layers
  vocab   rows of the embedding table and columns of the logits
  layers  the stack of layers of one parameter

Activations carry `batch` and one of `heads`, `mlp`, `vocab`; their residual
stream is never sharded, so `embed` is an axis of parameters only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import UserError, nearest

MESH_AXES = ("slice", "data", "fsdp", "model")
LOGICAL_AXES = ("batch", "length", "embed", "heads", "mlp", "vocab", "layers")

# The logical axes that meet in one array, which a mesh axis can cut but once: parameters, then activations.
_ARRAYS = tuple((*shared, last) for shared in (("layers", "embed"), ("batch", "length")) for last in LOGICAL_AXES[3:6])


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which mesh axes each logical axis is cut over. Hashable: layers hold it as static data.

    Args:
      table: pairs (logical axis, mesh axes).
    """

    table: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def spec(self, *axes: str | None) -> PartitionSpec:
        """The PartitionSpec of an array whose dimensions carry these logical axes (None: replicated)."""
        table = dict(self.table)
        return PartitionSpec(*(table.get(a) or None if a else None for a in axes))

    def without(self, axis: str) -> "Rules":
        """The same rules with one logical axis replicated."""
        return Rules(tuple(pair for pair in self.table if pair[0] != axis))

    def over(self, mesh) -> "Rules":
        """The same rules without the mesh axes of one device, which cut nothing.

        JAX keeps such an axis in the sharding of an array and loses it where it broadcasts a dimension of one, a batch
        of one row for example; it then refuses to join the two.
        """
        return Rules(tuple((name, tuple(axis for axis in axes if mesh.shape[axis] > 1)) for name, axes in self.table))


@dataclasses.dataclass(frozen=True)
class Partition:
    """A named layout, bound in gin/partition/*.gin.

    Args:
      mesh: size of each mesh axis; at most one may be -1, which takes the devices that are left.
      rules: logical axis -> mesh axis or axes. Unnamed logical axes are replicated.

    Raises:
      UserError: an axis name is unknown, or a rule uses one mesh axis twice in one array.
    """

    mesh: Mapping[str, int]
    rules: Mapping[str, str | Sequence[str]]

    def __post_init__(self):
        for name, value in (("mesh", self.mesh), ("rules", self.rules)):
            if not isinstance(value, Mapping):
                raise UserError(
                    f"Partition.{name} is {value!r}",
                    "it must be a dict"
                    + (" of sizes by mesh axis" if name == "mesh" else " of mesh axes by logical axis"),
                    f"see gin/partition/ and set --gin.partition.Partition.{name}",
                )
        for axis, size in self.mesh.items():
            _known("mesh axis", axis, MESH_AXES, "Partition.mesh")
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != -1):
                raise UserError(
                    f"Partition.mesh[{axis!r}] is {size!r}",
                    "it must be a whole number of at least 1, or -1 for the devices that are left",
                    "set --gin.partition.Partition.mesh",
                )
        for logical, axes in self.rules.items():
            _known("logical axis", logical, LOGICAL_AXES, "Partition.rules")
            for axis in _tuple(axes):
                _known("mesh axis", axis, MESH_AXES, "Partition.rules")
        for logical in _ARRAYS:
            cut = [axis for name in logical for axis in _tuple(self.rules.get(name, ()))]
            if twice := sorted({axis for axis in cut if cut.count(axis) > 1}):
                users = [name for name in logical if twice[0] in _tuple(self.rules.get(name, ()))]
                raise UserError(
                    f"Partition.rules cuts {' and '.join(users)} over the mesh axis {twice[0]}",
                    "they meet in one array, which a mesh axis can cut only once",
                    "change --gin.partition.Partition.rules",
                )
        if sum(size == -1 for size in self.mesh.values()) > 1:
            raise UserError(
                f"the mesh {dict(self.mesh)} has two axes of size -1",
                "only one axis can take the devices that are left",
                "set the others in Partition.mesh",
            )

    def table(self) -> Rules:
        return Rules(tuple((name, _tuple(axes)) for name, axes in sorted(self.rules.items())))

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of each mesh axis for this many devices, all four axes in order.

        Raises:
          UserError: the devices cannot be laid out so.
        """
        sizes = {axis: int(self.mesh.get(axis, 1)) for axis in MESH_AXES}
        fixed = math.prod(s for s in sizes.values() if s != -1)
        free = [axis for axis, size in sizes.items() if size == -1]
        if devices % fixed or (not free and devices != fixed) or fixed < 1:
            axis = free[0] if free else max(sizes, key=sizes.get)
            raise UserError(
                f"a mesh of {_shown(sizes)} does not fit {devices} device{'s' * (devices != 1)}",
                f"its fixed sizes multiply to {fixed}",
                f"change Partition.mesh so that the product is {devices}; {axis} may be -1 for what is left",
            )
        for axis in free:
            sizes[axis] = devices // fixed
        return sizes

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over all devices, or over those given, with explicit axes."""
        devices = jax.devices() if devices is None else list(devices)
        sizes = self.sizes(len(devices))
        return jax.make_mesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes), devices=devices
        )

    def abstract(self, devices: int) -> jax.sharding.AbstractMesh:
        """The same mesh with no devices behind it, to check a job for a machine that is not here."""
        sizes = self.sizes(devices)
        return jax.sharding.AbstractMesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes)
        )


def single_device() -> Mesh:
    """A mesh of the first device alone, for work that is not sharded."""
    return Partition({}, {}).build(jax.devices()[:1])


def batch_divisor(mesh, rules: Rules) -> int:
    """Into how many parts the mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in dict(rules.table).get("batch", ()))


def shardings(mesh, rules: Rules, shapes, axes):
    """A NamedSharding for each parameter.

    Args:
      mesh: the (abstract) mesh.
      rules: the axis rules.
      shapes: tree of arrays or ShapeDtypeStructs.
      axes: the same tree with a tuple of logical axes as each leaf.

    Raises:
      UserError: a dimension does not divide by the mesh axes that cut it.
    """

    def one(path, shape, names):
        for size, name in zip(shape.shape, names):
            check_divides(mesh, rules, name, size, _path(path))
        return NamedSharding(mesh, rules.spec(*names))

    return jax.tree_util.tree_map_with_path(one, shapes, axes, is_leaf=lambda x: hasattr(x, "shape"))


def check_divides(mesh, rules: Rules, axis: str | None, size: int, what: str) -> None:
    """Refuses a logical axis of a size that the mesh cannot cut evenly.

    Args:
      mesh: the (abstract) mesh.
      rules: the axis rules.
      axis: logical axis.
      size: its size.
      what: names the array, or what the axis counts.

    Raises:
      UserError: it does not divide.
    """
    cut = dict(rules.table).get(axis, ())
    parts = math.prod(mesh.shape[a] for a in cut)
    if size % parts:
        fit = max(d for d in range(1, parts + 1) if size % d == 0 and parts % d == 0)
        raise UserError(
            f"logical axis {axis} of size {size} ({what}) does not divide over mesh axes {'*'.join(cut)} = {parts}",
            "every device must hold the same share",
            f"set --gin.partition.Partition.mesh so that they multiply to {fit}, or take {axis} out of Partition.rules",
        )


def _path(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def _tuple(axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _shown(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "one device"


def _known(kind: str, name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise UserError(f"{name} in {where} is no {kind}", nearest(name, known), f"correct the name in {where}")
