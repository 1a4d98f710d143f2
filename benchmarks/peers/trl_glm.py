"""Benchmark of DPO with TRL's trainer, for comparison.

python benchmarks/peers/trl_glm.py --row=dpo [--repeats=10]

TRL 1.16.0's DPOTrainer on transformers 5.24's GLM of the shape of the preset
"benchmark", float32, torch 2.13, eager, full-length pairs, the reference on the fly.
The step is the trainer's own, from on_step_begin to on_step_end; batching is outside.
Unlike torch_glm, every position is projected to the vocabulary, in tiles that the
backward pass computes again; each step computes TRL's metrics (entropy, accuracy, mean
logits) and has a batch of its own; AdamW is torch's fused one, without decay of biases
and norms. JSON: pairs per second.
"""

import argparse
import json
import resource
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch_glm import CONFIG, PROMPT, RESPONSE, VOCABULARY
from transformers import (
    GlmConfig,
    GlmForCausalLM,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import DPOConfig, DPOTrainer

PAIRS = 16


class PairsTrainer(DPOTrainer):
    """A trainer for pairs that are already token ids."""

    def _prepare_dataset(self, dataset, *_):
        return dataset


class Clock(TrainerCallback):
    """A clock of the wall and processor seconds of each step."""

    def __init__(self):
        self.wall, self.busy = [], []

    def on_step_begin(self, *_, **__):
        self.start, self.start_busy = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        self.wall.append(time.perf_counter() - self.start)
        self.busy.append(time.process_time() - self.start_busy)


def dpo(steps: int, directory: str):
    """Return a trainer of `steps` batches of full-length pairs, and its clock."""
    policy, reference = (GlmForCausalLM(GlmConfig(**CONFIG)) for _ in range(2))
    reference.load_state_dict(policy.state_dict())
    lengths = {"prompt_ids": PROMPT, "chosen_ids": RESPONSE, "rejected_ids": RESPONSE}
    pairs = {
        name: torch.randint(1, VOCABULARY, (steps * PAIRS, length)).tolist()
        for name, length in lengths.items()
    }
    args = DPOConfig(
        directory,
        beta=0.1,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        per_device_train_batch_size=PAIRS,
        max_steps=steps,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    clock = Clock()
    padding = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    trainer = PairsTrainer(
        policy,
        reference,
        args,
        train_dataset=Dataset.from_dict(pairs),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=padding, pad_token="<pad>"
        ),
        callbacks=[clock],
    )
    return trainer, clock


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row", choices=["dpo"], required=True)
    parser.add_argument("--repeats", type=int, default=10)
    flags = parser.parse_args()

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        trainer, clock = dpo(flags.repeats + 1, directory)  # the first warms up
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rates = np.quantile(PAIRS / np.array(clock.wall[1:]), (0.25, 0.5, 0.75))
    results = vars(flags) | {
        "per_second": round(rates[1], 4),
        "quartiles": rates[[0, 2]].round(4).tolist(),
        "processor_seconds": round(np.median(clock.busy[1:]), 3),
        "first_seconds": round(clock.wall[0], 1),
        "peak_gib": round(peak / 2**20, 2),
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
