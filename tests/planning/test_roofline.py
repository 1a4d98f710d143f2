import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning.roofline import (
    CHIPS,
    GIB,
    Chip,
    Plan,
    bytes_per_device,
    largest_allocations,
)

CHIP = Chip(memory=100.0, flops=10.0, bandwidth=2.0, links=1.0)


def make_plan(**changes):
    fields = {
        "name": "update",
        "chip": CHIP,
        "fits": True,
        "memory": {"arguments": 4, "temporaries": 6},
        "largest": [],
        "flops": 50.0,
        "useful_flops": 40.0,
        "moved": {"all-gather": 8, "all-reduce": 2},
        "read": 8,
    }
    return Plan(**fields | changes)


def test_the_slowest_part_bounds_the_time():
    plan = make_plan()
    assert plan.seconds == {"products": 5.0, "memory": 4.0, "links": 10.0}
    assert plan.utilisation == 0.4
    assert make_plan(moved={}).utilisation == 0.8


@pytest.mark.devices(8)
def test_a_device_holds_its_part_of_an_array():
    sharding = NamedSharding(make_mesh((1, 4, 2)), P("fsdp", None))
    x = jax.ShapeDtypeStruct((8, 3), jnp.bfloat16, sharding=sharding)
    assert bytes_per_device(x) == 2 * 3 * 2


def test_the_largest_allocations_are_read_from_the_compilers_error():
    message = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.
    Used 22.81G of 15.75G hbm. Exceeded hbm capacity by 7.06G.
    Largest program allocations in hbm:
      1. Size: 4.00G
         Operator: op_name="jit(update)/attention/exp"
         Shape: f32[32,8,2048,2048]{3,2,1,0:T(8,128)}
         Unpadded size: 4.00G
    """
    lines = largest_allocations(message)
    assert lines[0].startswith("Used 22.81G of 15.75G hbm")
    assert any("f32[32,8,2048,2048]" in line for line in lines)
    other = "RESOURCE_EXHAUSTED: A kernel wants more vmem than there is."
    assert largest_allocations(other) == [other]


@pytest.mark.parametrize("kind", CHIPS)
def test_the_chips_numbers_are_of_their_size(kind):
    chip = CHIPS[kind]
    assert 15 * GIB < chip.memory < 100 * GIB
    assert 1e14 < chip.flops < 1e15
    assert 5e11 < chip.bandwidth < 5e12
    assert 1e11 < chip.links < 1e12
