"""The mesh and the rules that lay logical axes onto it, both from gin.

Logical axis names, all that the model uses:
  batch   rows of a batch
  length  positions of a sequence; never cut
  embed   the residual stream of a parameter (d_model)
  heads   attention heads, joined with their width in the kernels
  mlp     the hidden width of the feed-forward layers
  vocab   rows of the embedding table and columns of the logits
  layers  the stack of layers of one parameter; never cut

Activations carry `batch` and one of `heads`, `mlp`, `vocab`; their residual
stream is never sharded, so `embed` is an axis of parameters only.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.errors import UserError, nearest

MESH_AXES = ("slice", "data", "fsdp", "model")
LOGICAL_AXES = ("batch", "length", "embed", "heads", "mlp", "vocab", "layers")

# The fewest rows of a parameter's `embed` that a device may hold: the TPU compiler gathers what is thinner by
# all-reduce, which sends twice as much (libtpu 0.0.52).
THINNEST = 16

# The logical axes that meet in one array, which a mesh axis can cut but once: parameters, then activations.
_ARRAYS = tuple((shared, last) for shared in ("embed", "batch") for last in ("heads", "mlp", "vocab"))


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

    def gradient_sums(self) -> tuple[set[str], set[str]]:
        """The mesh axes whose devices' gradients of a weight with `embed` add up: among its cuts, and beside them.

        None are named where some of the cuts hold copies of rows: JAX then sums over the batch by itself.
        """
        cut, batch = (set(dict(self.table).get(axis, ())) for axis in ("embed", "batch"))
        return (cut, batch - cut) if cut <= batch else (set(), set())

    def over(self, mesh) -> "Rules":
        """The same rules without the mesh axes of one device, which cut nothing.

        JAX keeps such an axis in the sharding of an array and loses it where it broadcasts a dimension of one, a batch
        of one row for example; it then refuses to join the two.
        """
        return Rules(tuple((name, tuple(axis for axis in axes if mesh.shape[axis] > 1)) for name, axes in self.table))


@dataclasses.dataclass(frozen=True)
class Partition:
    """A named layout, bound in gin/partition/*.gin.

    The axis `slice` is the outermost: it alone crosses the data-centre network between TPU slices.

    Args:
      mesh: size of each mesh axis; at most one may be -1, which takes the devices that are left. A `slice` that is -1
        or left out is as many as there are TPU slices, and 1 on other devices.
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
            if logical in ("length", "layers") and _tuple(axes):
                raise UserError(
                    f"Partition.rules cuts {logical} over {axes!r}",
                    "every device computes whole sequences and all layers, one after the other",
                    "cut batch, embed, heads, mlp or vocab instead in --gin.partition.Partition.rules",
                )
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
        if sum(size == -1 for axis, size in self.mesh.items() if axis != "slice") > 1:
            raise UserError(
                f"the mesh {dict(self.mesh)} has two axes of size -1",
                "only one axis can take the devices that are left",
                "set the others in Partition.mesh",
            )

    def table(self) -> Rules:
        return Rules(tuple((name, _tuple(axes)) for name, axes in sorted(self.rules.items())))

    def sizes(self, devices: int, slices: int | None = None) -> dict[str, int]:
        """The size of each mesh axis for this many devices, all four axes in order.

        Args:
          devices: of all slices together.
          slices: TPU slices that they belong to; None: they belong to none.

        Raises:
          UserError: the devices cannot be laid out so.
        """
        sizes = {axis: int(self.mesh.get(axis, -1 if axis == "slice" else 1)) for axis in MESH_AXES}
        if sizes["slice"] == -1:
            sizes["slice"] = slices or 1
        if slices not in (None, sizes["slice"]):
            raise UserError(
                f"mesh axis slice of size {sizes['slice']} does not fit {_counted(slices, 'slice')}",
                "the axis stands for the TPU slices, between which only the data-centre network leads",
                f"set slice to {slices} in --gin.partition.Partition.mesh, or leave it out",
            )
        free = [axis for axis, size in sizes.items() if size == -1]
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if devices % fixed or (not free and devices != fixed):
            raise self._misfit(sizes, devices, fixed, slices)
        return sizes | dict.fromkeys(free, devices // fixed)

    def _misfit(self, sizes: Mapping[str, int], devices: int, fixed: int, slices: int | None) -> UserError:
        """Names the axes that need the least change, as few as will do, and their nearest sizes that fit."""
        is_free = -1 in sizes.values()
        axes = [a for a, size in self.mesh.items() if size != -1 and (a != "slice" or slices is None)] or ["data"]
        within = devices // (fixed // math.prod(sizes[axis] for axis in axes))  # each slice, where they are given
        divisors = [n for n in range(1, within + 1) if within % n == 0]
        # What an axis of -1 takes may be any number; without one nothing may be left.
        fits = [
            choice for choice in itertools.product(divisors, repeat=len(axes))
            if (within % math.prod(choice) == 0 if is_free else within == math.prod(choice))
        ]  # fmt: skip

        def change(choice: tuple[int, ...]) -> tuple:
            far = [abs(math.log(n / sizes[axis])) for axis, n in zip(axes, choice)]
            return sum(map(bool, far)), sum(far), [-n for n in choice]

        nearest = dict(zip(axes, min(fits, key=change)))
        changed = [axis for axis in axes if nearest[axis] != sizes[axis]]
        is_one = len(changed) == 1
        return UserError(
            f"mesh {'axis' if is_one else 'axes'} {' and '.join(f'{axis} of size {sizes[axis]}' for axis in changed)} "
            f"{'does' if is_one else 'do'} not fit {_counted(devices, 'device')}",
            f"the mesh {_shown(sizes)} "
            + (f"has fixed sizes that multiply to {fixed}" if is_free else f"multiplies to {fixed}"),
            "set --gin.partition.Partition.mesh with "
            + f"{' and '.join(f'{axis}={nearest[axis]}' for axis in changed)}, the nearest that fits"
            + (f", or with {changed[0]}=-1 for the devices that are left" if is_one and not is_free else ""),
        )

    def build(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over all devices, or over those given, with explicit axes."""
        placed = self.placed(jax.devices() if devices is None else devices)
        return Mesh(placed, MESH_AXES, axis_types=(AxisType.Explicit,) * len(MESH_AXES))

    def placed(self, devices: Sequence) -> np.ndarray:
        """The devices in the shape of the mesh, JAX's or those of `slices.devices`.

        On TPUs neighbours on the mesh are neighbours in the torus as far as its shape allows; slices stay whole.
        """
        devices = list(devices)
        slices = slices_of(devices)
        sizes = self.sizes(len(devices), slices)
        if slices in (None, 1):
            return mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        within = tuple((sizes | {"slice": 1}).values())
        between = (slices, *(1 for _ in within[1:]))
        return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)

    def abstract(self, devices: int, slices: int | None = None) -> jax.sharding.AbstractMesh:
        """The same mesh with no devices behind it, to check a job for a machine that is not here."""
        sizes = self.sizes(devices, slices)
        return jax.sharding.AbstractMesh(
            tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Explicit,) * len(sizes)
        )


def slices_of(devices: Sequence[jax.Device]) -> int | None:
    """How many TPU slices the devices belong to; None where they are no TPUs."""
    if devices[0].platform != "tpu":
        return None
    return len({getattr(device, "slice_index", None) for device in devices})


def split_axis(sizes: Mapping[str, int], sides: Sequence[int]) -> tuple[str, int, list[int]] | None:
    """The first mesh axis that takes only part of a side of the torus, innermost axes first as they are laid.

    Its collectives then have no ring of their own, and another axis shares the links.

    Args:
      sizes: of the mesh axes, outermost first.
      sides: of one slice, with the devices of a chip as the last where there are several.

    Returns:
      The axis, its size, and the sizes that would take whole sides; None where all do.
    """
    free = [side for side in sides if side > 1]
    for axis in reversed([axis for axis in sizes if axis != "slice" and sizes[axis] > 1]):
        whole = {math.prod(c): c for count in range(1, len(free) + 1) for c in itertools.combinations(free, count)}
        if sizes[axis] not in whole:
            return axis, sizes[axis], sorted(whole)
        for side in whole[sizes[axis]]:
            free.remove(side)
    return None


def single_device() -> Mesh:
    """A mesh of the first device alone, for work that is not sharded."""
    return Partition({}, {}).build(jax.devices()[:1])


def ways(mesh, rules: Rules, axis: str) -> int:
    """Into how many parts the mesh cuts a logical axis."""
    return math.prod(mesh.shape[name] for name in dict(rules.table).get(axis, ()))


def batch_divisor(mesh, rules: Rules) -> int:
    """Into how many parts the mesh cuts a batch."""
    return ways(mesh, rules, "batch")


def hosts_of_batch(placed: np.ndarray, rules: Rules) -> np.ndarray:
    """The host of each device, [parts, copies] in the order of the parts that a batch is cut into.

    Args:
      placed: from `Partition.placed`.
      rules: the axis rules.
    """
    hosts = np.vectorize(lambda device: device.process_index)(placed)
    cut = [MESH_AXES.index(axis) for axis in dict(rules.table).get("batch", ())]
    parts = math.prod(hosts.shape[axis] for axis in cut)
    return np.moveaxis(hosts, cut, range(len(cut))).reshape(parts, -1)


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
    parts = ways(mesh, rules, axis)
    if size % parts:
        fit = max(d for d in range(1, parts + 1) if size % d == 0 and parts % d == 0)
        fix = f"set --gin.partition.Partition.mesh so that they multiply to {fit}"
        if len(cut) == 1:  # the devices that it leaves go to the batch
            others = {a: n for a, n in mesh.shape.items() if a not in (*cut, "slice", "data") and n > 1}
            sizes = ", ".join(f'"{a}": {n}' for a, n in {"data": -1, **others, cut[0]: fit}.items())
            fix = f"set --gin.partition.Partition.mesh='{{{sizes}}}', the nearest that fits"
        raise UserError(
            f"logical axis {axis} of size {size} ({what}) does not divide over mesh axes {'*'.join(cut)} = {parts}",
            "every device must hold the same share",
            f"{fix}, or take {axis} out of Partition.rules",
        )


def _path(path) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)


def _tuple(axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes)


def _shown(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "one device"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _known(kind: str, name: str, known: Sequence[str], where: str) -> None:
    if name not in known:
        raise UserError(f"{name} in {where} is no {kind}", nearest(name, known), f"correct the name in {where}")
