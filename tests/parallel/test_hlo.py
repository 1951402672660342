"""Reading compiled programs: a text whose figures are counted by hand, and what XLA writes for a CPU."""

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.parallel import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%sliced (p0: s32[], p1: f32[12,8,128]) -> f32[8,128] {
  %p0.1 = s32[]{:T(128)} parameter(0)
  %p1.1 = f32[12,8,128]{2,1,0:T(8,128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p1.1, %p0.1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  ROOT %whole = f32[8,128]{1,0:T(8,128)} bitcast(%one)
}

%written (p0: f32[12,8,128], p1: f32[8,128], p2: s32[]) -> f32[12,8,128] {
  %p0.2 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1.2 = f32[8,128]{1,0:T(8,128)} parameter(1)
  %p2.2 = s32[]{:T(128)} parameter(2)
  %row = f32[1,8,128]{2,1,0:T(8,128)} bitcast(%p1.2)
  %zero.2 = s32[]{:T(128)} constant(0)
  ROOT %update = f32[12,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p0.2, %row, %p2.2, %zero.2, %zero.2)
}

%body (arg: (s32[], f32[12,8,128], f32[8,128])) -> (s32[], f32[12,8,128], f32[8,128]) {
  %arg = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %stack = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%arg), index=1
  %fast = f32[8,128]{1,0:T(8,128)S(1)} fusion(%i, %stack), kind=kLoop, calls=%sliced, \
metadata={op_name="jit(step)/while/body/read"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %new = f32[12,8,128]{2,1,0:T(8,128)} fusion(%stack, %fast, %i), kind=kLoop, calls=%written, \
backend_config={"window_config":{"estimated_cycles":"50"}}
  %same = f32[8,128]{1,0:T(8,128)} get-tuple-element(%arg), index=2
  ROOT %out = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,128]{1,0:T(8,128)}) tuple(%i, %new, \
%same)
}

%condition (arg: (s32[], f32[12,8,128], f32[8,128])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,128]{1,0:T(8,128)}) parameter(0)
  %turns = s32[]{:T(128)} constant(12), metadata={op_name="jit(step)/while/cond/lt"}
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %turns), direction=LT
}

ENTRY %main (a: f32[12,8,128], b: f32[8,128]) -> f32[8,128] {
  %a = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = f32[8,128]{1,0:T(8,128)} parameter(1)
  %start = s32[]{:T(128)} constant(0)
  %tuple = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,128]{1,0:T(8,128)}) tuple(%start, %a, %b)
  %loop = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[8,128]{1,0:T(8,128)}) while(%tuple), \
condition=%condition, body=%body
  %c = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=2
  %fetch = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%c)
  %fetched = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%fetch)
  ROOT %kernel = f32[8,128]{1,0:T(8,128)} custom-call(%fetched, %c), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000000","bytes_accessed":"10"}}}
}
"""
TILE = 8 * 128 * 4  # bytes


@pytest.fixture(scope="module")
def program():
    return hlo.parse(PROGRAM)


def test_instructions_are_read_with_shapes_operands_and_names(program):
    assert program.entry == "main"
    fusion = next(i for i in program.computations["body"] if i.name == "fast")
    assert (fusion.opcode, fusion.operands, fusion.cycles) == ("fusion", ("i", "stack"), 100)
    assert fusion.shapes == (hlo.Shape("f32", (8, 128), space=1),)
    assert (fusion.bytes, fusion.hbm_bytes) == (TILE, 0)
    assert fusion.op_name == "jit(step)/while/body/read"
    assert fusion.called("calls") == ["sliced"]
    loop = next(i for i in program.computations["main"] if i.opcode == "while")
    assert [s.dims for s in loop.shapes] == [(), (12, 8, 128), (8, 128)]
    assert program.computations["main"][-1].target == "tpu_custom_call"


def test_what_stands_in_a_loop_runs_as_often_as_it_turns(program):
    times = {i.name: n for i, n in hlo.executed(program)}
    assert (times["fast"], times["new"], times["loop"], times["kernel"]) == (12, 12, 1, 1)
    assert "one" not in times  # a fusion is one instruction
    assert sum(n * (i.cycles or 0) for i, n in hlo.executed(program)) == 12 * 150


@pytest.mark.parametrize(
    "name, moved",
    [
        ("fast", TILE),  # one of twelve rows, into VMEM
        ("new", TILE),  # in place: the row alone is written, and what it is read from is in VMEM
        ("fetch", TILE),  # from HBM to VMEM
        ("fetched", 0),
        ("loop", 0),
        ("kernel", 2 * TILE),
    ],
)
def test_bytes_of_hbm(program, name, moved):
    named = {i.name: i for body in program.computations.values() for i in body}
    assert hlo.hbm_traffic(program, named[name], named) == moved + (4 if name in ("fast", "new") else 0)  # the index


@pytest.mark.parametrize(
    "dtype, size", [("pred", 1), ("bf16", 2), ("f32", 4), ("s64", 8), ("f8e4m3fn", 1), ("u4", 0.5)]
)
def test_bytes_of_types(dtype, size):
    assert hlo.Shape(dtype, (4, 6)).bytes == 24 * size


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_the_loop_of_a_scan_turns_as_often_as_the_scan():
    def f(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=37)[0]

    text = jax.jit(f).lower(jnp.ones((16, 16))).compile().as_text()
    module = hlo.parse(text)
    loops = [i for i, _ in hlo.executed(module) if i.opcode == "while"]
    assert [hlo.trip_count(module, loop) for loop in loops] == [37]
