"""Benchmark of transformers on an accelerator, beside benchmarks/accelerator.py.

python benchmarks/peers/torch_accelerator.py --row=generate|sft [--model=chatglm3_6b]

A GLM of the preset's shape with random weights, in bfloat16. "generate" samples with
64 rows, attention by sdpa; "sft" is a step of fused AdamW on weights in float32 under
autocast, with checkpointing, in two microbatches. Needs torch that sees a GPU; small
models run on the CPU too. JSON: tokens a second, seconds, peak memory.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # jax serves for the preset alone
sys.path.insert(0, str(Path(__file__).parents[2]))  # the package of this repository

try:
    import torch
except ImportError:
    sys.exit("torch is not installed: pip install torch, with CUDA.")
from torch.nn import functional
from transformers import GlmConfig, GlmForCausalLM

from configs.common import SMALL
from rlhf_jax.models.presets import preset

ROWS = 64  # of generation
MICROBATCHES = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=["generate", "sft"], required=True)
    parser.add_argument("--model", default="chatglm3_6b")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="of the SFT step")
    parser.add_argument("--length", type=int, default=2048, help="of the SFT step")
    flags = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    if not has_gpu and flags.model not in SMALL:
        sys.exit("torch sees no GPU here: install torch with CUDA.")
    torch.manual_seed(0)
    with torch.device("cuda" if has_gpu else "cpu"):
        measure = {"generate": generate, "sft": sft}[flags.row]
        call, tokens = measure(config_of(flags.model), flags)
        seconds = [timed(call, has_gpu) for _ in range(3)][1:]
    result = {"seconds": round(statistics.median(seconds), 4)}
    result["tokens_per_second"] = round(tokens / result["seconds"])
    if has_gpu:
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    print(json.dumps(result | {"torch": torch.__version__}))


def timed(call, has_gpu: bool) -> float:
    began = time.perf_counter()
    call()
    if has_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def config_of(name: str) -> GlmConfig:
    """Return transformers' config of a preset's shape."""
    c = preset(name)
    return GlmConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.width,
        intermediate_size=c.ffn_width,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        attention_bias=c.qkv_bias,
        max_position_embeddings=c.context_length,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=None,
    )


def generate(config: GlmConfig, flags):
    model = GlmForCausalLM(config).to(torch.bfloat16).eval()
    tokens = torch.randint(1, config.vocab_size, (ROWS, flags.prompt))
    mask = torch.ones_like(tokens)

    def call():
        model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=flags.response,
            min_new_tokens=flags.response,
            do_sample=True,
            top_k=0,
        )

    return call, ROWS * flags.response


def sft(config: GlmConfig, flags):
    model = GlmForCausalLM(config).train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    tokens = torch.randint(1, config.vocab_size, (flags.rows, flags.length))

    def call():
        optimizer.zero_grad()
        for part in tokens.chunk(MICROBATCHES):
            with torch.autocast(tokens.device.type, torch.bfloat16):
                logits = model(part, use_cache=False).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), part[:, 1:].flatten()
            )
            (loss / MICROBATCHES).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return call, tokens.numel()


if __name__ == "__main__":
    main()
