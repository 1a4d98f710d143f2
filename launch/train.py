"""Train one stage: sft, reward, ppo or dpo.

python launch/train.py --config=configs/sft.py:tiny --workdir=runs/sft \
    [--config.key=value ...]
"""

import start

if __name__ == "__main__":
    start.stage("sft", "reward", "ppo", "dpo")
