import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_jax.parallel.mesh import (
    check_batch,
    check_experts,
    check_heads,
    complete,
    make_mesh,
)


@pytest.mark.devices(8)
def test_a_mesh_has_every_device_once_and_automatic_axes():
    mesh = make_mesh((2, -1, 2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
    assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 3


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64), st.integers(0, 2))
def test_minus_one_takes_what_is_left(a, b, c, axis):
    sizes = [a, b, c]
    asked = sizes.copy()
    asked[axis] = -1
    assert complete(asked, a * b * c) == tuple(sizes)


@pytest.mark.parametrize("sizes", [(1, 1), (0, 1, 8), (-1, -1, 1), (1, -2, 1)])
def test_sizes_that_are_none_name_the_axes(sizes):
    with pytest.raises(ValueError, match="data, fsdp and tensor, and perhaps pipe"):
        complete(sizes, 8)


def test_sizes_that_do_not_make_up_the_devices_get_the_nearest_that_do():
    with pytest.raises(ValueError, match=r"\(3, 1, 2\).*8 devices.*\(4, 1, 2\)"):
        complete((3, 1, 2), 8)
    with pytest.raises(ValueError, match=r"\(1, -1, 3\).*8 devices.*\(1, 2, 4\)"):
        complete((1, -1, 3), 8)


@pytest.mark.devices(8)
def test_a_batch_that_does_not_divide_gets_the_nearest_sizes():
    with jax.set_mesh(make_mesh((2, 2, 2))):
        check_batch("batch_size", 8, parts=2)
        with pytest.raises(
            ValueError, match=r"batch_size=10 .*data=2 x fsdp=2.*8 or 12"
        ):
            check_batch("batch_size", 10)
        with pytest.raises(ValueError, match=r"batch_size=12 .* 2 parts.*: 8 or 16"):
            check_batch("batch_size", 12, parts=2)
        with pytest.raises(ValueError, match=r"that do: 4\."):
            check_batch("batch_size", 3)
    check_batch("batch_size", 7)  # no mesh, nothing to share


@pytest.mark.devices(8)
def test_heads_that_do_not_divide_get_the_nearest_sizes_of_the_axis():
    with jax.set_mesh(make_mesh((1, 1, 8))):
        check_heads(32)
        with pytest.raises(ValueError, match=r"tensor=8.*12 query heads.*: 6 or 12"):
            check_heads(12)


@pytest.mark.devices(8)
@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ((1, 4, 2), ""),
        ((1, 8, 1), r"fsdp=8 does not divide 12 experts\. .*: 6 or 12\."),
        ((1, 4, 1, 2), r"pipe=2 splits layers, .* experts .*: leave it out, and give"),
    ],
)
def test_experts_are_shared_out_equally_and_their_layers_not_at_all(mesh, message):
    with jax.set_mesh(make_mesh(mesh)):
        check_experts(0)
        if not message:
            check_experts(12)
            return
        with pytest.raises(ValueError, match=message) as error:
            check_experts(12)
        assert "\n" not in str(error.value)
