"""The step of benchmarks/dpo.py as a plain torch loop, to compare with.

python benchmarks/peers/dpo_torch.py [--pairs=16] [--prompt=64] [--response=128]

transformers' GLM of the shape of the preset "benchmark", float32, eager: chosen and
rejected are two rows with a prompt each, the reference runs without gradients, AdamW.
Only response positions reach the vocabulary, which is more than most trainers do.
"""

import argparse
import json
import time

import numpy as np
import torch
from torch.nn import functional
from transformers import GlmConfig, GlmForCausalLM


def sequence_logprobs(model, tokens, response: int):
    """Summed log-probabilities of the last `response` tokens: [rows]."""
    logits = model(tokens, logits_to_keep=response + 1, use_cache=False).logits
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, -response:].flatten(), reduction="none"
    )
    return -loss.view(len(tokens), response).sum(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=12)
    flags = parser.parse_args()

    torch.manual_seed(0)
    config = GlmConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    policy, reference = GlmForCausalLM(config), GlmForCausalLM(config)
    reference.load_state_dict(policy.state_dict())
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1
    )
    prompts = torch.randint(0, 8192, (flags.pairs, 1, flags.prompt)).expand(-1, 2, -1)
    responses = torch.randint(0, 8192, (flags.pairs, 2, flags.response))
    tokens = torch.cat([prompts, responses], dim=2).flatten(0, 1)

    def step():
        with torch.no_grad():
            before = sequence_logprobs(reference, tokens, flags.response)
        ratios = sequence_logprobs(policy, tokens, flags.response) - before
        chosen, rejected = ratios.view(-1, 2).unbind(1)
        loss = -functional.logsigmoid(0.1 * (chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    wall, busy = [], []
    for _ in range(flags.repeats + 1):  # the first warms up
        start, start_busy = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    rates = np.quantile(flags.pairs / np.array(wall[1:]), (0.25, 0.5, 0.75))
    found = vars(flags) | {
        "parameters": policy.num_parameters(),
        "cores": torch.get_num_threads(),
        "on_the_fly_pairs_per_second": round(rates[1], 2),
        "on_the_fly_quartiles": rates[[0, 2]].round(2).tolist(),
        "on_the_fly_processor_seconds": round(np.median(busy[1:]), 3),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
