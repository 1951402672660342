"""Communication: who takes part, how often, how many bytes and how long, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x_lite.parallel import collectives, hlo, roofline
from t5x_lite.parallel.chips import CHIPS
from t5x_lite.parallel.collectives import Torus, first_group, found, rings, summed
from t5x_lite.parallel.partition import Partition


def torus(mesh, sides, name="v5e"):
    """Devices in the order of their places."""
    places = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), axis=1)
    return Torus(mesh, places, tuple(sides), rings(len(sides), sides), CHIPS[name])


@pytest.mark.parametrize(
    "text, group",
    [
        ("replica_groups={{0,2},{1,3}}, x", [0, 2]),
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_0'}, x", [0, 1]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}, x", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2}, x", [0, 4]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}, x", [0, 1, 2, 3]),
        ("source_target_pairs={{0,1},{1,2}}", [0, 1]),
        ("replica_groups={}, x", list(range(8))),
    ],
)
def test_groups_in_every_notation(text, group):
    assert first_group(text, 8) == group


def test_axes_are_those_along_which_a_group_differs():
    t = torus({"slice": 1, "data": 4, "fsdp": 4, "model": 1}, (4, 4))
    assert t.axes([0, 1, 2, 3]) == ("fsdp",)
    assert t.axes([0, 4, 8, 12]) == ("data",)
    assert t.axes(range(16)) == ("data", "fsdp")


def test_bandwidth_of_lines_rings_and_strides():
    link = CHIPS["v5e"].ici_link
    small, pod = torus({"x": 16}, (4, 4)), torus({"x": 256}, (16, 16))
    assert small.bandwidth(range(4)) == link  # a line: one link each way
    assert small.bandwidth(range(16)) == 2 * link  # both sides at once
    assert pod.bandwidth(range(16)) == 2 * link  # a whole side of a pod is a ring
    assert pod.bandwidth(range(4)) == link
    assert pod.bandwidth([0, 4, 8, 12]) == 2 * link / 4  # four such groups share a ring
    assert torus({"x": 64}, (4, 4, 4), "v5p").bandwidth(range(64)) == 6 * CHIPS["v5p"].ici_link


def test_slices_close_to_rings_where_google_says():
    assert rings(2, (16, 16)) == (True, True)
    assert rings(2, (8, 16)) == (False, True)
    assert rings(3, (4, 4, 8)) == (True, True, True)
    assert rings(3, (2, 4, 4)) == (False, False, False)


@pytest.mark.parametrize(
    "kind, share", [("all-gather", 3 / 4), ("all-reduce", 3 / 2), ("reduce-scatter", 3 / 4), ("collective-permute", 1)]
)
def test_what_a_ring_of_four_sends(kind, share):
    assert collectives.sent_share(kind, 4) == share


ASYNC = """HloModule m

%start (p: bf16[8,128]) -> (bf16[8,128], bf16[32,128]) {
  %p = bf16[8,128]{1,0} parameter(0)
  %g.1 = bf16[32,128]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c.1 = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%middle (p: bf16[8,128], x: f32[4,128]) -> f32[4,128] {
  %p.2 = bf16[8,128]{1,0} parameter(0)
  %x.2 = f32[4,128]{1,0} parameter(1)
  %g.2 = bf16[32,128]{1,0} all-gather(%p.2), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %n = f32[4,128]{1,0} negate(%x.2)
}

%done (p: bf16[8,128]) -> bf16[32,128] {
  %p.3 = bf16[8,128]{1,0} parameter(0)
  %g.3 = bf16[32,128]{1,0} all-gather(%p.3), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %c.3 = bf16[32,128]{1,0} custom-call(%g.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (q: f32[32,128]) -> f32[8,128] {
  %q = f32[32,128]{1,0} parameter(0)
  %r = f32[32,128]{1,0} all-reduce(%q), channel_id=9, replica_groups={{0,1,2,3}}, to_apply=%add
  %z = s32[] constant(0)
  ROOT %s = f32[8,128]{1,0} dynamic-slice(%r, %z, %z), dynamic_slice_sizes={8,128}
}

ENTRY %main (a: bf16[8,128], b: f32[32,128]) -> f32[8,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %b = f32[32,128]{1,0} parameter(1)
  %x = f32[4,128]{1,0} constant({...})
  %f.1 = (bf16[8,128]{1,0}, bf16[32,128]{1,0}) fusion(%a), kind=kCustom, calls=%start
  %f.2 = f32[4,128]{1,0} fusion(%a, %x), kind=kLoop, calls=%middle
  %f.3 = bf16[32,128]{1,0} fusion(%a), kind=kCustom, calls=%done
  %send = (f32[32,128]{1,0}, u32[], token[]) send(%b, %token), channel_id=3, is_host_transfer=true
  ROOT %f.4 = f32[8,128]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter
}
"""


def test_one_collective_over_several_instructions_counts_once():
    t = torus({"slice": 1, "data": 1, "fsdp": 4, "model": 1}, (2, 2))
    by_kind = {c.kind: c for c in found(hlo.parse(ASYNC), t)}
    assert set(by_kind) == {"all-gather", "reduce-scatter", collectives.DCN}
    gather, scatter = by_kind["all-gather"], by_kind["reduce-scatter"]
    assert (gather.times, gather.bytes, gather.sent) == (1, 32 * 128 * 2, 24 * 128 * 2)
    assert gather.axes == scatter.axes == ("fsdp",)
    assert scatter.sent == 24 * 128 * 4
    assert gather.seconds == pytest.approx(gather.sent / (2 * CHIPS["v5e"].ici_link))
    assert by_kind[collectives.DCN].seconds == pytest.approx(32 * 128 * 4 / CHIPS["v5e"].dcn)


SPARSE = """HloModule m

%gathers (p: bf16[1,4,8]) -> bf16[8,4,8] {
  %p = bf16[1,4,8]{2,1,0} parameter(0)
  ROOT %g = bf16[8,4,8]{2,1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}, execution_thread="sparsecore"

%beside (p: bf16[1,4,8]) -> bf16[8,4,8] {
  %p.1 = bf16[1,4,8]{2,1,0} parameter(0)
  ROOT %c = bf16[8,4,8]{2,1,0} custom-call(%p.1), custom_call_target="x", called_computations={%gathers}
}, execution_thread="sparsecore"

ENTRY %main (a: bf16[1,4,8]) -> bf16[8,4,8] {
  %a = bf16[1,4,8]{2,1,0} parameter(0)
  %s = ((bf16[1,4,8]{2,1,0}), bf16[8,4,8]{2,1,0}, u32[]) async-start(%a), calls=%beside
  ROOT %d = bf16[8,4,8]{2,1,0} async-done(%s), calls=%beside
}
"""


def test_what_a_sparse_core_gathers_beside_the_program_counts():
    program = hlo.parse(SPARSE)
    (gather,) = found(program, torus({"fsdp": 8}, (2, 4), "v6e"))
    assert (gather.kind, gather.times, gather.bytes, gather.axes) == ("all-gather", 1, 8 * 4 * 8 * 2, ("fsdp",))
    assert roofline.of_program(program, CHIPS["v6e"], [gather]).kernels_s == 0  # no kernel of ours


def test_collectives_of_a_real_program_in_a_loop():
    """XLA's own text for two CPU devices: a sum over both in each of five turns."""
    mesh = Partition({"data": -1}, {"batch": "data"}).build(jax.devices()[:2])
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((8, 16)), jax.NamedSharding(mesh, P("data", None)))

        def f(x):
            def turn(w, _):
                y = x @ w
                return w + jnp.einsum("bi,bo->io", x, y, out_sharding=P(None, None)), None

            return jax.lax.scan(turn, jnp.zeros((16, 16)), None, length=5)[0]

        module = hlo.parse(jax.jit(f).lower(x).compile().as_text())
    t = Torus(dict(mesh.shape), np.array([[0, 0], [1, 0]]), (2, 1), (False, False), CHIPS["v5e"])
    (total,) = summed(found(module, t))
    assert (total.kind, total.axes, total.devices, total.times) == ("all-reduce", ("data",), 2, 5)
    assert total.bytes == 5 * 16 * 16 * 4
