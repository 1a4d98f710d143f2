"""Supervised fine-tuning on dialogues.

Run: python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("sft", preset)
    small = common.is_small(preset)
    c.optimizer = common.optimizer(2e-3 if small else 1e-5)
    c.epochs = 3 if small else 2
    c.batch_size = 16 if small else 128  # dialogues
    c.max_tokens = 128 if preset == "tiny" else 256 if preset == "hh" else 2048
    c.pad_to_multiple = 32 if small else 256  # few widths mean few compiled programs
    c.eval_every = 200
    c.save_every = 500
    return c
