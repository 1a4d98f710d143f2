"""Raw comparisons to a clean, length-balanced set: files to files.

Run: python launch/prepare_comparisons.py --config=configs/prepare_comparisons.py \
         --workdir=runs/prepared --config.comparisons=answers.jsonl,more.jsonl.gz
     python launch/train.py --config=configs/reward.py:tiny --workdir=runs/reward \
         --config.comparisons=runs/prepared/comparisons.jsonl \
         --config.comparisons_test=runs/prepared/comparisons_test.jsonl
"""

from ml_collections import ConfigDict

from configs import common

# "tiny": what collect leaves on the testbed. "hh": a set whose test split is its own.
PRESETS = ("default", "tiny", "hh")


def get_config(preset="default"):
    common.check_preset(preset, PRESETS, "prepare_comparisons")
    c = ConfigDict()
    c.stage = "prepare_comparisons"  # module in rlhf_jax/stages
    tiny = preset == "tiny"
    c.seed = 0  # decides which pairs length balancing drops
    # Files .jsonl, .json, .csv, .tsv or .parquet with commas between, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.comparisons = ""
    c.split = "train"  # of a data set
    c.layout = ""  # of the rows (data/reading/layouts.py); "": found from their fields
    c.on_bad_record = "error"  # or "skip": left out; bad_records.jsonl lists them
    # A tokenizer's folder or a model's: lengths are in its tokens; "": one is trained.
    c.tokenizer = ""
    c.vocab_size = 2048  # of a tokenizer trained here
    c.annotators = annotators()
    # Of the conversations, held out; not balanced by length.
    c.test_share = {"tiny": 0.1, "hh": 0.0}.get(preset, 0.05)
    # Tokens, the width of a bucket of length balancing; 0: no balancing. The paper
    # gives no width, and it matters little.
    c.length_bucket = 4 if tiny else 10
    return c


def annotators() -> ConfigDict:
    """When an annotator is out (rlhf_jax/data/cleaning/annotator_quality.py). Who
    guesses gets half of the answers right and contradicts half of the repeats."""
    c = ConfigDict()
    c.min_known_right = 0.8  # out: the share of known answers right is certainly less
    c.max_contradicted = 0.3  # out: the share of repeats contradicted certainly more
    c.confidence = 0.9  # of the two-sided interval: certain means 19 to 1
    return c
