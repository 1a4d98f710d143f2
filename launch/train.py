"""Run one stage: the module in rlhf_jax/stages that the config names.

python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft \
    [--config.key=value ...]
"""

import start

if __name__ == "__main__":
    start.stage()
