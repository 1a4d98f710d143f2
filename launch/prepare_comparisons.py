"""Raw human comparisons to a clean, length-balanced set, and what was dropped and why.

python launch/prepare_comparisons.py --config=configs/prepare_comparisons.py \
    --workdir=runs/prepared --config.comparisons=answers.jsonl,more.jsonl.gz
"""

import start

from rlhf_jax.stages import prepare_comparisons

if __name__ == "__main__":
    start.run(prepare_comparisons.run)
