"""Reading compiled programs: of XLA for the CPU, and lines of the TPU's compiler."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning.hlo import collectives, written_in_loops

TPU = """\
%cond (p: (s32[], bf16[8,4])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(28)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%all-reduce-scatter.1 (input: bf16[8,4]) -> bf16[2,4] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} all-reduce(%x), replica_groups={{0,1,2,3}}
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %b = bf16[8,4]{1,0:T(8,128)} all-gather(%x), replica_groups=mesh['x'=4] {'x'}
  %c = bf16[2,4]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %while.2 = (s32[], u32[]) while(%t), condition=%cond.2, body=%body.2
}

%cond.2 (p: (s32[], u32[])) -> pred[] {
  %constant.2 = u32[]{:T(128)} constant(16)
  %j = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%j, %constant.2), direction=LT
}

%body.2 (p: (s32[], u32[])) -> (s32[], u32[]) {
  %two = u32[] constant(2)
  %one = u32[] constant(1)
  %j = u32[]{:T(128)} get-tuple-element(%p), index=1
  %odd = u32[]{:T(128)} add(%j, %one)
  %copy.3 = u32[]{:T(128)} copy(%j), metadata={}
  %next = u32[]{:T(128)} add(%copy.3, %two)
  %f = f32[4]{0} collective-permute(%w), source_target_pairs={{0,1}}
  ROOT %tuple = (s32[], u32[]) tuple(%f, %next, %odd.1)
}

ENTRY %main (a: bf16[2,4]) -> bf16[2,4] {
  %while.1 = (s32[], bf16[8,4]) while(%tuple), condition=%cond, body=%body
  %d = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%z)
  ROOT %e = s32[4,8]{1,0} all-to-all(%z), replica_groups=[2,4]<=[8], dimensions={0}
}
"""


def test_collectives_in_loops_count_as_often_as_the_loop_runs():
    found = {(c.kind, c.loops): c for c in collectives(TPU)}
    times = {kind: (c.times, c.bytes_moved) for kind, c in found.items()}
    assert times == {
        ("all-gather", 1): (28, 3 * 16),  # a quarter of it was here
        ("reduce-scatter", 1): (28, 3 * 16),
        ("collective-permute", 2): (28 * 8, 16),  # unrolled: counts in steps of two
        ("collective-permute", 0): (1, 64),
        ("all-to-all", 0): (1, 4 * 8 * 4 * 3 // 4),
    }


@pytest.mark.devices(8)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_sharded_product_on_this_machine_has_the_collective_it_needs(axis):
    mesh = make_mesh((1, 8, 1))
    spec = P("fsdp", None) if axis == 0 else P(None, "fsdp")
    a = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
    b = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, spec))
    out = NamedSharding(mesh, P())
    compiled = jax.jit(jnp.matmul, out_shardings=out).lower(a, b).compile()
    (found,) = collectives(compiled.as_text())
    assert found.kind == ("all-reduce" if axis == 0 else "all-gather")
    assert found.bytes_moved == (2 if axis == 0 else 1) * 8 * 8 * 4 * 7 // 8


WRITING = """\
%cond (p: (s32[], bf16[28,64,64])) -> pred[] {
  %constant.1 = s32[] constant(28)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %constant.1), direction=LT
}

%goes_on (p: (s32[], pred[8])) -> pred[] {
  %constant.2 = s32[] constant(16)
  %j = s32[] get-tuple-element(%p), index=0
  %live = pred[8]{0} get-tuple-element(%p), index=1
  ROOT %and = pred[] fusion(%j, %live, %constant.2), kind=kLoop, calls=%any
}

%taken_in (w: bf16[28,64,64], x: bf16[8,64]) -> bf16[8,64] {
  %slice.1 = bf16[1,64,64]{2,1,0} dynamic-slice(%w, %i), dynamic_slice_sizes={1,64,64}
  ROOT %dot.1 = bf16[8,64]{1,0} dot(%x, %slice.1)
}

%step (p: (s32[], pred[8])) -> (s32[], pred[8]) {
  %w = bf16[28,64,64]{2,1,0} get-tuple-element(%p), index=2
  %layer = bf16[64,64]{1,0} bitcast(%w)
  %good = bf16[8,64]{1,0} fusion(%w, %x), kind=kOutput, calls=%taken_in
  %product = (bf16[8,64]{1,0}, s8[33554432]{0}) custom-call(%x, %layer)
  %near = bf16[64,64]{1,0:T(8,128)S(1)} copy(%layer)
  %sliced = bf16[64,64]{1,0} fusion(%w), kind=kLoop, calls=%wrapped
  %buffered = bf16[8,64]{1,0} call(%w), to_apply=%commands
  %chosen = bf16[8]{0} conditional(%k), branch_computations={%first, %second}
  %while.3 = (s32[]) while(%q), condition=%cond, body=%inner
}

%commands (w: bf16[64,64]) -> bf16[8,64] {
  %cast = f32[64,64]{1,0} convert(%w)
}

%first (k: pred[]) -> bf16[8] {
  %copied = bf16[64,64]{1,0} copy(%w)
}

%inner (q: (s32[])) -> (s32[]) {
  %started = (bf16[64,64]{1,0}, bf16[64,64]{1,0}, u32[]) copy-start(%w)
}

%layers (p: (s32[], bf16[28,64,64])) -> (s32[], bf16[28,64,64]) {
  %read = bf16[64,64]{1,0} dynamic-slice(%w, %i), dynamic_slice_sizes={1,64,64}
}

ENTRY %main (w: bf16[28,64,64]) -> bf16[8,64] {
  %outside = bf16[64,64]{1,0} copy(%w)
  %while.1 = (s32[], bf16[28,64,64]) while(%t), condition=%cond, body=%layers
  %while.2 = (s32[], pred[8]) while(%t), condition=%goes_on, body=%step
}
"""


def test_what_a_loop_writes_is_what_its_products_do_not_read_in_place():
    """A slice inside a product's fusion, a library's workspace, what lies in the fast
    memory and what stands before the loop are none."""
    found = written_in_loops(WRITING, smallest=64 * 64 * 2)
    assert {x.name: x.trips for x in found} == {
        "read": 28,
        "sliced": 0,
        "cast": 0,
        "copied": 0,
        "started": 0,
    }
    assert {x.name for x in written_in_loops(WRITING, smallest=64 * 64 * 4)} == {"cast"}
