"""The programs that launch/plan.py compiles are those that the stages run."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.planning import programs, roofline
from rlhf_jax.planning.flops import count_flops

STAGES = ("sft", "reward", "dpo", "ppo")


def config(stage: str, **fields):
    made = importlib.import_module(f"configs.{stage}").get_config("tiny")
    made.update(fields)
    return made


@pytest.mark.devices(8)
@pytest.mark.parametrize("stage", STAGES)
def test_every_program_takes_the_shapes_that_it_is_planned_with(stage):
    with jax.set_mesh(make_mesh((2, 2, 2))):
        for program in programs.of(config(stage)):
            out = jax.eval_shape(program.function, *program.arguments)
            if program.donate:  # the state comes back as it went in
                same = jax.tree.map(
                    lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype),
                    out[0],
                    program.arguments[0],
                )
                assert all(jax.tree.leaves(same))


@pytest.mark.devices(8)
def test_without_recomputation_a_program_has_fewer_operations():
    fused = config("sft")
    fused.optimizer.fused = True
    with jax.set_mesh(make_mesh((2, 2, 2))):
        (program,) = programs.of(fused)
        (useful,) = programs.of(fused, recompute=False)
        (plain,) = programs.of(config("sft"))
    counts = [count_flops(p.function, *p.arguments) for p in (program, useful, plain)]
    assert counts[0] > counts[1] == counts[2]


@pytest.mark.devices(8)
def test_frozen_models_in_8_bits_take_a_byte_a_weight():
    def smallest(dtype):
        with jax.set_mesh(make_mesh((2, 2, 2))):
            found = programs.of(config("ppo", frozen_param_dtype=dtype))
        (score,) = (p for p in found if p.name == "score")
        return min(x.dtype.itemsize for x in jax.tree.leaves(score.arguments[1]))

    assert [smallest(dtype) for dtype in ("int8", "bfloat16")] == [1, 2]


@pytest.mark.devices(8)
def test_what_waits_in_the_hosts_memory_is_not_held_on_the_devices():
    def held(**fields):
        with jax.set_mesh(make_mesh((2, 2, 2))):
            found = programs.of(config("ppo", **fields))
        sizes = {p.name: [x.size for x in jax.tree.leaves(p.held)] for p in found}
        return {name: sum(size) for name, size in sizes.items()}

    here, away = held(), held(offload_frozen=True, offload_moments=True)
    assert here["update"] > away["update"] == 0
    assert here["score"] > away["score"] == 0
    assert here["generate"] > away["generate"]
    # The reference answers too, and is scored; without, the value model alone is held.
    alone = held(offload_frozen=True, offload_moments=True, baseline="greedy")
    assert away["generate"] > alone["generate"] > 0


@pytest.mark.devices(8)
def test_the_judge_is_held_beside_every_program_unless_it_waits_on_the_host():
    def held(**fields):
        with jax.set_mesh(make_mesh((2, 2, 2))):
            found = programs.of(config("ppo", **fields))
        return np.array([roofline.size(p.held) for p in found])

    with jax.set_mesh(make_mesh((2, 2, 2))):
        policy = programs.of(config("ppo"))[0].arguments[0].policy.model
    judged = held(judge_model="runs/judge") - held()
    assert len(set(judged)) == 1 and judged[0] > 0.8 * roofline.size(policy)
    offloaded = {"offload_frozen": True}
    np.testing.assert_array_equal(
        held(judge_model="runs/judge", **offloaded), held(**offloaded)
    )


@pytest.mark.devices(8)
def test_a_copy_in_8_bits_answers_and_the_policy_is_held_beside_it():
    def generating(**fields):
        with jax.set_mesh(make_mesh((2, 2, 2))):
            found = programs.of(config("ppo", **fields))
        program = next(p for p in found if p.name == "generate")
        return program, sum(x.size for x in jax.tree.leaves(program.held))

    (same, held), (copy, held_beside) = (
        generating(rollout_param_dtype=dtype) for dtype in ("same", "int8")
    )
    policy, answering = same.arguments[0], copy.arguments[0]
    size = sum(x.size for x in jax.tree.leaves(policy))
    assert held_beside == held + size
    assert any(x.dtype == jnp.int8 for x in jax.tree.leaves(answering))
    read, read_of_copy = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(p.loop_reads))
        for p in (same, copy)
    )
    assert read_of_copy < read
    out = jax.eval_shape(copy.function, *copy.arguments)
    assert out.tokens.shape == (128, config("ppo").max_response_tokens)


@pytest.mark.devices(8)
def test_sizes_that_the_mesh_cannot_share_are_refused_before_compilation():
    with jax.set_mesh(make_mesh((2, 4, 1))):
        with pytest.raises(ValueError, match=r"batch_size=12 .* 8 or 16"):
            programs.of(config("sft", batch_size=12))
        with pytest.raises(ValueError, match="'collect' trains nothing; dpo, ppo"):
            programs.of(config("collect"))
    with (
        jax.set_mesh(make_mesh((1, 1, 8))),
        pytest.raises(ValueError, match="tensor=8"),
    ):
        programs.of(config("sft"))
