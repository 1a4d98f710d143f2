"""Supervised fine-tuning on dialogues.

Run: python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("sft", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Projects this many positions of a row to the vocabulary at once, to save memory; 0
    # projects all of them at once. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(2e-3 if small else 1e-5)
    # The number of passes over the data. [1, 2**20]
    c.epochs = 3 if small else 2
    # The number of dialogues of an update. [1, 2**20]
    c.batch_size = 16 if small else 128
    # Limits dialogues to this many tokens; too_long decides on longer ones. [1, 2**20]
    c.max_tokens = lengths.dialogue
    # The treatment of dialogues that are too long: "drop" leaves them out;
    # "truncate_prompt" removes their oldest turns; "truncate_end" cuts them at the
    # limit, and the cut answer then has no end token.
    c.too_long = "drop"
    # True trains on the thought that an answer begins with, up to "</think>"; False
    # trains on what follows the thought alone.
    c.train_on_thoughts = True
    # True packs the dialogues of an update into rows as wide as the longest, one after
    # another and each by itself for the model, so that little is padding; False gives
    # every dialogue a row of its own.
    c.pack = True
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 32 if preset == "tiny" else 64 if preset == "hh" else 256
    # Evaluates every this many steps and at the end; 0 never evaluates. [0, inf)
    c.eval_every = 200
    # Saves a checkpoint every this many steps and at the end; 0 saves none. [0, inf)
    c.save_every = 500
    # Writes this many conversations to samples.jsonl at the end; 0 writes none.
    # [0, inf)
    c.num_samples = 8
    # Leaves out prompts of these conversations that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts an answer of these conversations at this many tokens. [1, 2**20]
    c.max_response_tokens = lengths.generated
    return c
