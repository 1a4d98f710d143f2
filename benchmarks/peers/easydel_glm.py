"""Benchmark of DPO with EasyDeL's trainer, for comparison.

JAX_PLATFORMS=cpu python benchmarks/peers/easydel_glm.py --row=dpo [--repeats=10]

EasyDeL 0.3.0's DPOTrainer on its GLM of the shape of the preset "benchmark", float32
but for the rotary table (bfloat16, fixed there), JAX 0.9.2, full-length pairs, the
reference on the fly. It needs an environment of its own with easydel and, for imports
in its models, torch and pillow. The step is the trainer's own compiled one, called
directly on one ready batch: train() adds the data loader and logging. Unlike torch_glm,
every position is projected to the vocabulary, and each step returns the norm of every
gradient.
JSON: pairs per second.
"""

import argparse
import json
import resource
import tempfile
import time
from types import SimpleNamespace

import jax
import numpy as np
from datasets import Dataset
from easydel import DPOConfig, DPOTrainer
from easydel.modules.glm import GlmConfig, GlmForCausalLM
from flax import nnx
from jax import numpy as jnp

VOCABULARY = 8192
PAIRS, PROMPT, RESPONSE = 16, 64, 128
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "max_position_embeddings": PROMPT + RESPONSE,
    "attn_dtype": jnp.float32,  # bfloat16 by default
}


def model():
    return GlmForCausalLM(
        GlmConfig(**CONFIG),
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )


def full_pairs():
    """Return a batch of full-length pairs, with the trainer's names."""
    rng, batch = np.random.default_rng(0), {}
    lengths = {"prompt": PROMPT, "chosen": RESPONSE, "rejected": RESPONSE}
    for name, length in lengths.items():
        shape = (PAIRS, length)
        batch[f"{name}_input_ids"] = rng.integers(1, VOCABULARY, shape, dtype=np.int32)
        batch[f"{name}_attention_mask"] = np.ones(shape, np.int32)
    return batch


def dpo(batch, directory: str):
    """Return a function that runs one step of the trainer."""
    args = DPOConfig(
        save_directory=directory,
        beta=0.1,
        learning_rate=1e-6,
        extra_optimizer_kwargs={"b1": 0.9, "b2": 0.95},
        weight_decay=0.1,
        clip_grad=1.0,
        total_batch_size=PAIRS,
        max_length=PROMPT + RESPONSE,
        max_prompt_length=PROMPT,
        max_completion_length=RESPONSE,
        use_wandb=False,
        report_metrics=False,
        resume_if_possible=False,
    )
    trainer = DPOTrainer(
        args,
        model(),
        reference_model=model(),
        processing_class=SimpleNamespace(pad_token_id=0),
        train_dataset=Dataset.from_dict({k: v.tolist() for k, v in batch.items()}),
    )
    state = trainer.model_state

    def step():
        nonlocal state
        with trainer.mesh:
            state, _, error = trainer._execute_train_step(state, batch)
        if error is not None:
            raise error

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=["dpo"], required=True)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)  # EasyDeL sets one
    with tempfile.TemporaryDirectory() as directory:
        step = dpo(full_pairs(), directory)
        wall, busy = [], []
        for _ in range(flags.repeats + 1):  # the first compiles
            start, start_busy = time.perf_counter(), time.process_time()
            step()
            wall.append(time.perf_counter() - start)
            busy.append(time.process_time() - start_busy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates = np.quantile(PAIRS / np.array(wall[1:]), (0.25, 0.5, 0.75))
    results = vars(flags) | {
        "per_second": round(rates[1], 4),
        "quartiles": rates[[0, 2]].round(4).tolist(),
        "processor_seconds": round(np.median(busy[1:]), 3),
        "first_seconds": round(wall[0], 1),
        "peak_gib": round(peak / 2**20, 2),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
