"""Compare checkpoints on held-out prompts.

python launch/evaluate.py --config=configs/evaluate.py:tiny --workdir=runs/evaluate \
    --config.models=sft=runs/sft,ppo=runs/ppo
"""

import start

if __name__ == "__main__":
    start.stage("evaluate")
