"""Supervised fine-tuning on dialogues.

Run: python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("sft", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Positions projected to the vocabulary at once; 0: all. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(2e-3 if small else 1e-5)
    c.epochs = 3 if small else 2  # passes over the data [1, 2**20]
    c.batch_size = 16 if small else 128  # dialogues [1, 2**20]
    # of a dialogue; of longer ones too_long decides [1, 2**20]
    c.max_tokens = lengths.dialogue
    # "drop": left out; "truncate_prompt": without their oldest turns; "truncate_end":
    # cut at the limit, and the answer that is cut has no end token.
    c.too_long = "drop"
    # Few widths mean few compiled programs. [1, 65536]
    c.pad_to_multiple = 32 if preset == "tiny" else 64 if preset == "hh" else 256
    c.eval_every = 200  # steps, and at the end; 0: never [0, inf)
    c.save_every = 500  # steps, and at the end; 0: never [0, inf)
    c.num_samples = 8  # conversations written at the end [0, inf)
    c.max_prompt_tokens = lengths.prompt  # of these samples [1, 2**20]
    c.max_response_tokens = lengths.generated  # of these samples [1, 2**20]
    return c
