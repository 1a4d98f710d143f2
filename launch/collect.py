"""Collect comparisons of a model's responses.

python launch/collect.py --config=configs/collect.py:tiny --workdir=runs/collect \
    --config.init_from=runs/sft
"""

import start

if __name__ == "__main__":
    start.stage("collect")
