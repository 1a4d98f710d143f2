"""Benchmarks of all rows as plain torch loops, for comparison.

python benchmarks/peers/torch_glm.py --row=sft|reward|dpo|generate|ppo [--repeats=10]

transformers' GLM of the shape of the preset "benchmark" (4 layers, width 256,
vocabulary 8,192), float32, eager, torch's AdamW and clipping. A pair is two rows, each
with its prompt; only response positions are projected to the vocabulary, a saving that
most trainers do not make. Sampling is transformers' `generate`. JSON: pairs, tokens or
iterations a second, median and quartiles, seconds of the first call, and the process's
peak memory.
"""

import argparse
import json
import resource
import time

import numpy as np
import torch
from torch.nn import functional
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    GlmForSequenceClassification,
    GlmForTokenClassification,
)

VOCABULARY = 8192
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
    "eos_token_id": None,
}
PROMPT, RESPONSE = 64, 128


def training_step(model, loss_fn):
    """Take one step: loss, gradient, clipping, AdamW."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-6, betas=(0.9, 0.95), weight_decay=0.1
    )

    def step():
        loss = loss_fn()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def pairs(count: int):
    """Return chosen and rejected after their prompt: [2 count, PROMPT + RESPONSE]."""
    prompts = torch.randint(1, VOCABULARY, (count, 1, PROMPT)).expand(-1, 2, -1)
    responses = torch.randint(1, VOCABULARY, (count, 2, RESPONSE))
    return torch.cat([prompts, responses], dim=2).flatten(0, 1)


def token_logprobs(model, tokens, **fields):
    """Compute log-probabilities of the responses' tokens: [rows, RESPONSE]."""
    logits = model(
        tokens, logits_to_keep=RESPONSE + 1, use_cache=False, **fields
    ).logits
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, -RESPONSE:].flatten(), reduction="none"
    )
    return -loss.view(len(tokens), RESPONSE)


def sequence_logprobs(model, tokens):
    """Compute summed log-probabilities of the responses: [rows]."""
    return token_logprobs(model, tokens).sum(-1)


def sft(rows: int):
    model = GlmForCausalLM(GlmConfig(**CONFIG))
    tokens = torch.randint(1, VOCABULARY, (rows, PROMPT + RESPONSE))

    def loss_fn():
        logits = model(tokens, use_cache=False).logits
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )

    return training_step(model, loss_fn), tokens.numel()


def reward(rows: int):
    model = GlmForSequenceClassification(GlmConfig(**CONFIG, num_labels=1))
    tokens = pairs(rows)

    def loss_fn():
        scores = model(tokens, use_cache=False).logits[:, 0].view(-1, 2)
        ranking = -functional.logsigmoid(scores[:, 0] - scores[:, 1]).mean()
        return ranking + 0.01 * (scores**2).sum(1).mean()

    return training_step(model, loss_fn), rows


def dpo(rows: int):
    policy, reference = (GlmForCausalLM(GlmConfig(**CONFIG)) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    tokens = pairs(rows)

    def loss_fn():
        with torch.no_grad():
            before = sequence_logprobs(reference, tokens)
        ratios = sequence_logprobs(policy, tokens) - before
        chosen, rejected = ratios.view(-1, 2).unbind(1)
        return -functional.logsigmoid(0.1 * (chosen - rejected)).mean()

    return training_step(policy, loss_fn), rows


def prompts(rows: int):
    """Return left-padded prompts of random lengths, and the mask of real tokens."""
    lengths = torch.randint(PROMPT // 4, PROMPT + 1, (rows, 1))
    mask = torch.arange(PROMPT)[None] >= PROMPT - lengths
    return torch.randint(1, VOCABULARY, (rows, PROMPT)) * mask, mask.long()


def sample(model, tokens, mask):
    """Sample responses; return prompts and responses: [rows, PROMPT + RESPONSE]."""
    return model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=RESPONSE,
        min_new_tokens=RESPONSE,
        do_sample=True,
        top_k=0,
    )


def generate(rows: int):
    model = GlmForCausalLM(GlmConfig(**CONFIG)).eval()
    tokens, mask = prompts(rows)
    return lambda: sample(model, tokens, mask), rows * RESPONSE


def ppo(rows: int, epochs: int = 4):
    """Generate, score with four models, generalised advantages, `epochs` updates."""
    policy, reference = (GlmForCausalLM(GlmConfig(**CONFIG)) for _ in range(2))
    value = GlmForTokenClassification(GlmConfig(**CONFIG, num_labels=1))
    scorer = GlmForSequenceClassification(GlmConfig(**CONFIG, num_labels=1)).eval()
    value.dropout.p = 0.0
    tokens, prompt_mask = prompts(rows)
    mask = torch.cat([prompt_mask, torch.ones(rows, RESPONSE, dtype=torch.long)], 1)
    shared = {
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }

    def values_of(dialogues):
        values = value(dialogues, use_cache=False, **shared).logits[..., 0]
        return values[:, PROMPT - 1 : -1]

    @torch.no_grad()
    def experience():
        dialogues = sample(policy, tokens, prompt_mask)
        before = token_logprobs(policy, dialogues, **shared)
        ref = token_logprobs(reference, dialogues, **shared)
        scores = scorer(dialogues, use_cache=False, **shared).logits[:, 0]
        values = values_of(dialogues)
        rewards = -0.05 * (before - ref)
        rewards[:, -1] += scores
        advantage, advantages = torch.zeros(rows), torch.empty_like(rewards)
        for t in reversed(range(RESPONSE)):
            after = values[:, t + 1] if t + 1 < RESPONSE else 0.0
            delta = rewards[:, t] + after - values[:, t]
            advantage = delta + 0.95 * advantage
            advantages[:, t] = advantage
        return dialogues, before, values, advantages

    def policy_loss():
        dialogues, before, _, advantages = now
        ratios = (token_logprobs(policy, dialogues, **shared) - before).exp()
        clipped = ratios.clamp(0.8, 1.2)
        return -torch.minimum(ratios * advantages, clipped * advantages).mean()

    def value_loss():
        dialogues, _, old, advantages = now
        new, returns = values_of(dialogues), old + advantages
        clipped = old + (new - old).clamp(-0.2, 0.2)
        errors = torch.maximum((new - returns) ** 2, (clipped - returns) ** 2)
        return 0.5 * errors.mean()

    steps = training_step(policy, policy_loss), training_step(value, value_loss)
    now = ()

    def call():
        nonlocal now
        now = experience()
        for _ in range(epochs):
            for step in steps:
                step()

    return call, 1


ROWS = {"sft": (sft, 16), "reward": (reward, 16), "dpo": (dpo, 16)}
ROWS |= {"generate": (generate, 32), "ppo": (ppo, 32)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=ROWS, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()

    torch.manual_seed(0)
    make, rows = ROWS[flags.row]
    call, work = make(rows)
    wall, busy = [], []
    for _ in range(flags.repeats + 1):  # the first warms up
        start, start_busy = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    rates = np.quantile(work / np.array(wall[1:]), (0.25, 0.5, 0.75))
    results = vars(flags) | {
        "cores": torch.get_num_threads(),
        "per_second": round(rates[1], 4),
        "quartiles": rates[[0, 2]].round(4).tolist(),
        "processor_seconds": round(np.median(busy[1:]), 3),
        "first_seconds": round(wall[0], 1),
        "peak_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        ),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
