"""Training steps compiled by the TPU's compiler. Needs libtpu, not a TPU:

python -m pytest -m tpu_compiler tests/planning/test_tpu_compiler.py

in a process of its own, and only one at a time on a machine. To compile every program
of PPO at the published sizes takes twelve minutes of a core, so what came out is kept,
for as long as the programs and the compiler are the same (ppo_fits.json).
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-16")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import dpo, ppo, reward
from configs import sft as sft_config
from rlhf_jax.algorithms import sft
from rlhf_jax.batches import SFTBatch
from rlhf_jax.generation.sampling import Sampling
from rlhf_jax.models.attention import attend
from rlhf_jax.models.chatglm import ChatGLM
from rlhf_jax.models.presets import preset
from rlhf_jax.parallel.layers import decoded_in_a_loop
from rlhf_jax.parallel.mesh import make_mesh
from rlhf_jax.parallel.sharding import ACTIVATIONS, shard_parameters
from rlhf_jax.planning import programs
from rlhf_jax.planning.hlo import collectives, written_in_loops
from rlhf_jax.planning.roofline import (
    CHIPS,
    bytes_per_device,
    compile_with_text,
    memory_of,
)
from rlhf_jax.training.optimizers import adamw
from rlhf_jax.training.state import TrainState

pytestmark = [
    pytest.mark.tpu_compiler,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
    ),
]


@pytest.fixture(autouse=True)
def precision_of_users():
    """Not that of the other tests."""
    with jax.default_matmul_precision("default"):
        yield


ROWS, LENGTH, CHUNK = 4, 1536, 512
ADAMW = adamw(1e-5, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
FUSED = dataclasses.replace(ADAMW, fused=True, clip="per_layer")
LAYERS = preset("chatglm3_6b").num_layers
PPO_FITS = Path(__file__).with_name("ppo_fits.json")


def chips(topology: str, mesh):
    """A context: the mesh on chips that are not there."""
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return jax.set_mesh(make_mesh(mesh, found.devices))


@functools.cache
def compiled(optimizer):
    """SFT of chatglm3_6b on four v5p chips, parameters split by fsdp: the compiled
    step, its text, and the number of parameters."""
    config = preset("chatglm3_6b", attention="splash")
    with chips("v5p:2x2x1", (1, 4, 1)):
        state = shard_parameters(
            jax.eval_shape(
                lambda: TrainState.create(ChatGLM(config, rngs=nnx.Rngs(0)), optimizer)
            )
        )
        rows = NamedSharding(jax.sharding.get_mesh(), P(ACTIVATIONS["batch"]))
        mask = jax.ShapeDtypeStruct((ROWS, LENGTH), bool, sharding=rows)
        tokens = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32, sharding=rows)
        step = functools.partial(
            sft.train_step,
            optimizer=optimizer,
            hyper=sft.Hyper(
                num_tokens=config.vocab_size, chunk_size=CHUNK, microbatches=1
            ),
        )
        lowered = jax.jit(step, donate_argnums=0).lower(
            state, SFTBatch(tokens, mask, mask), jax.ShapeDtypeStruct((), jnp.float32)
        )
        program, text = compile_with_text(lowered)
    return program, text, sum(x.size for x in jax.tree.leaves(state.model))


@pytest.mark.parametrize("optimizer", [ADAMW, FUSED], ids=("ordinary", "fused"))
def test_a_layer_is_gathered_and_its_gradient_scattered_and_nothing_else(optimizer):
    """Its five matrices: for the forward pass, again for the backward pass (the
    compiler gathers up to three of them once more rather than keep them), and back."""
    _, text, _ = compiled(optimizer)
    found = Counter(
        c.kind for c in collectives(text) if c.times == LAYERS and c.bytes_moved > 2**21
    )
    assert found["reduce-scatter"] == 5
    assert 10 <= found["all-gather"] <= 13
    assert set(found) == {"reduce-scatter", "all-gather"}


def test_no_buffer_holds_the_logits_of_all_tokens():
    _, text, _ = compiled(ADAMW)
    vocabulary = preset("chatglm3_6b").vocab_size
    for length in (LENGTH, LENGTH - 1):
        assert f"{length},{vocabulary}]" not in text
    assert f"{CHUNK},{vocabulary}]" in text  # a chunk's are there


def test_the_state_is_updated_in_place():
    for optimizer in (ADAMW, FUSED):
        program, _, _ = compiled(optimizer)
        found = program.memory_analysis()
        assert found.alias_size_in_bytes > 0.999 * found.output_size_in_bytes


def kernels(text: str) -> set[str]:
    return set(re.findall(r"%splash_mha_([a-z]+)\S* = .* custom-call\(", text))


def test_attention_is_the_splash_kernel_and_no_scores_are_in_memory():
    _, text, _ = compiled(ADAMW)
    assert kernels(text) == {"fwd", "dq", "dkv"}
    assert not re.search(rf"\[[\d,]*{LENGTH},{LENGTH}\]", text)


def test_the_fused_update_saves_the_memory_of_the_gradient():
    ordinary, _, size = compiled(ADAMW)
    fused, _, _ = compiled(FUSED)
    saved = memory_of(ordinary)["temporaries"] - memory_of(fused)["temporaries"]
    gradient = 4 * size / 4  # float32, a chip of four
    assert saved > 0.95 * gradient


@pytest.mark.parametrize("stage", [ppo, sft_config, reward, dpo])
def test_every_program_of_a_run_is_laid_out_on_chips_that_are_not_there(stage):
    config = stage.get_config("tiny")
    with chips("v5e:2x2", config.mesh):
        for program in programs.of(config):
            lowered = jax.jit(program.function).lower(*program.arguments)
            assert "mhlo.num_partitions = 4" in lowered.as_text()


def test_what_a_step_of_decoding_scores_never_leaves_the_chip():
    """Why there is no kernel for it: as in one, keys and values are read once, and the
    scores [rows, key-value heads, query heads of one, slots] stay in fast memory."""
    config, slots = preset("chatglm3_6b"), 2048
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    with chips("v5e:2x2", (1, 4, 1)):
        rows = NamedSharding(jax.sharding.get_mesh(), P(ACTIVATIONS["batch"]))

        def shape(*axes, dtype=jnp.bfloat16):
            return jax.ShapeDtypeStruct((32, *axes), dtype, sharding=rows)

        lowered = jax.jit(attend).lower(
            shape(1, heads, head_dim),
            shape(kv_heads, head_dim, slots),
            shape(kv_heads, slots, head_dim),
            shape(1, slots, dtype=bool),
        )
        program, text = compile_with_text(lowered)
    assert memory_of(program)["temporaries"] == 0
    scores = rf"f32\[8,{kv_heads},{heads // kv_heads},{slots}\]{{([^}}]*)}}"
    places = re.findall(scores, text[text.index("ENTRY") :])
    assert places
    assert all("S(1)" in place for place in places), places


@pytest.mark.parametrize("quantised", [False, True])
def test_a_loop_over_stacked_layers_decodes_without_a_copy_of_weights(quantised):
    """On TPUs alone products read a layer's weights inside the stacked array, so layers
    stay stacked there, and one of them is compiled. A chip has at least a MiB of each
    of a layer's matrices, half a MiB in 8 bits; a layer's keys of the two rows have
    less."""
    config = preset(
        "chatglm3_6b", num_layers=3, param_dtype="bfloat16", quantised=quantised
    )
    sampling = Sampling(
        max_new_tokens=16,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=0,
        stop_ids=(2,),
        pad_id=0,
        num_tokens=1024,
    )
    with chips("v5e:2x2", (1, 1, 4)):
        assert decoded_in_a_loop(config.scan_layers)
        tokens = programs.array((2, 64))
        mask = programs.array((2, 64), bool)
        key = jax.eval_shape(lambda: jax.random.key(0))
        key = programs.replicated((), key.dtype)
        generate = functools.partial(programs.generation, share=1, sampling=sampling)
        lowered = jax.jit(generate).lower(
            programs.parameters(config), tokens, mask, key
        )
        _, text = compile_with_text(lowered)
    smallest = config.width * 2 * 128 * 2 * (1 if quantised else 2) // 4
    written = written_in_loops(text, smallest=smallest)
    assert [x for x in written if not x.trips] == []


@pytest.mark.parametrize("name", ["generate", "score", "update"])
@pytest.mark.parametrize(
    ("model", "topology"),
    [("chatglm3_6b", "v5e:4x8"), ("glm4_0414_32b", "v5p:4x4x2")],
)
def test_ppo_of_all_parameters_fits(model, topology, name):
    """Prompts and responses of 1,024 tokens, 256 of them an iteration; in the update
    attention is the kernel, and no buffer holds the logits of all tokens of a row."""
    config = ppo.get_config(model)
    assert config.max_prompt_tokens == config.max_response_tokens == 1024
    with chips(topology, config.mesh):
        (program,) = (p for p in programs.of(config) if p.name == name)
        function = jax.jit(
            program.function, donate_argnums=(0,) if program.donate else ()
        )
        lowered = function.lower(*program.arguments)
        found = compiled_once(
            f"{name} of {model} on {topology}", lowered, preset(model).vocab_size
        )
    held = sum(bytes_per_device(x) for x in jax.tree.leaves(program.held))
    used = held + sum(found["memory"].values())
    assert used < CHIPS[topology.partition(":")[0]].memory
    if name == "update":
        assert found["kernels"] == ["dkv", "dq", "fwd"]
        assert 512 in found["rows_of_logits"]  # a chunk's are there
        assert not {1023, 1024, 2047, 2048} & set(found["rows_of_logits"])


def compiled_once(name: str, lowered, vocabulary: int) -> dict:
    """Return the compiler's report on a program: that of ppo_fits.json, if program and
    versions are the same; else the program is compiled now and recorded there."""
    versions = {x: metadata.version(x) for x in ("jax", "jaxlib", "libtpu")}
    # A kernel's body says where its file lies; which kernel it is, stands beside it.
    text = re.sub(r"(body\\22: \\22)[^\\]*", r"\1", lowered.as_text())
    program = hashlib.sha256(text.encode()).hexdigest()
    known = json.loads(PPO_FITS.read_text())
    found = known.get(name, {})
    if (found.get("versions"), found.get("program")) != (versions, program):
        compiled, text = compile_with_text(lowered)
        logits = re.findall(rf"\b(\d+),{vocabulary}\]", text)
        known[name] = found = {
            "versions": versions,
            "program": program,
            "memory": memory_of(compiled),
            "kernels": sorted(kernels(text)),
            "rows_of_logits": sorted(set(map(int, logits))),
        }
        PPO_FITS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return found
