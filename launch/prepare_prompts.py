"""Prompts to the ones worth asking, and what was dropped and why.

python launch/prepare_prompts.py --config=configs/prepare_prompts.py \
    --workdir=runs/prompts --config.prompts=requests.jsonl,more.jsonl.gz
"""

import start

from rlhf_jax.stages import prepare_prompts

if __name__ == "__main__":
    start.run(prepare_prompts.run)
