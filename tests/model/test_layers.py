"""How weights that are cut over `embed` travel: whole to where they are used, and their gradients back in shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

from t5x_lite.model import layers
from t5x_lite.parallel import hlo
from t5x_lite.parallel.partition import Partition
from tests.train import tiny

pytestmark = pytest.mark.sharded

MESH = {"data": 2, "fsdp": 2, "model": 2}
RULES = {"batch": ("data", "fsdp"), "embed": "fsdp", "mlp": "model"}
B, L, D, F = 8, 4, 32, 48
CASES = {
    # axes of the kernel, its shape, axes of what goes in and of what comes out
    "into_the_layer": (("embed", "mlp"), (D, F), ("batch", "length", None), ("batch", "length", "mlp")),
    "out_of_the_layer": (("mlp", "embed"), (F, D), ("batch", "length", "mlp"), ("batch", "length", None)),
}


def gradient(partition: Partition, case: str):
    """A function (kernel, x) -> the kernel's gradient, compiled on the mesh, and its arguments."""
    axes, shape, x_axes, out_axes = CASES[case]
    mesh = partition.build(jax.devices()[: 8 if partition.mesh else 1])
    rules = partition.table().over(mesh)

    def loss(kernel, x):
        return jnp.sum(jnp.sin(layers.Dense(nnx.Param(kernel), axes, rules, "float32")(x, out_axes)))

    rng = np.random.default_rng(0)
    kernel, x = (rng.normal(size=size).astype(np.float32) for size in (shape, (B, L, shape[0])))
    placed = [
        jax.device_put(value, NamedSharding(mesh, rules.spec(*names))) for value, names in ((kernel, axes), (x, x_axes))
    ]
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(*placed).compile(), placed


@pytest.mark.parametrize("case", CASES)
def test_gradients_come_back_in_shares(case):
    """The devices of a cut add up whole kernels; what each then keeps is all that copies of the cut exchange."""
    compiled, placed = gradient(Partition(MESH, RULES), case)
    found = tiny.collectives_of(compiled, MESH)
    whole = 4 * D * F // MESH["model"]
    # On a CPU, XLA scatters by an all-reduce among the devices of the cut, of which each keeps its share.
    assert sorted((one.kind, one.axes, one.bytes) for one in found if one.axes != ("model",)) == [
        ("all-gather", ("fsdp",), whole),
        ("all-reduce", ("data",), whole // MESH["fsdp"]),
        ("all-reduce", ("fsdp",), whole),
    ]
    # `embed` leads, whichever side of the kernel it is: shards stay whole rows.
    gathers = [
        one.shapes[0].dims for one, _ in hlo.executed(hlo.parse(compiled.as_text())) if one.opcode == "all-gather"
    ]
    assert gathers == [(D, F // MESH["model"])]
    alone, of_one = gradient(Partition({}, {}), case)
    np.testing.assert_allclose(compiled(*placed), alone(*of_one), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_cut_over_other_devices_than_the_batch_sums_nothing(case):
    """`embed` over a mesh axis along which the rows are copies: the gradient is no sum over it."""
    apart, placed = gradient(Partition({"data": 4, "fsdp": 2}, {"batch": "data", "embed": "fsdp"}), case)
    alone, of_one = gradient(Partition({}, {}), case)
    np.testing.assert_allclose(apart(*placed), alone(*of_one), rtol=1e-4, atol=1e-4)
