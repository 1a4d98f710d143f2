"""Raw human comparisons to a clean, length-balanced set: files to files.

Run: python launch/prepare_comparisons.py --config=configs/prepare_comparisons.py \
         --workdir=runs/prepared --config.comparisons=answers.jsonl,more.jsonl.gz
     python launch/train.py --config=configs/reward.py:tiny --workdir=runs/reward \
         --config.comparisons=runs/prepared/comparisons.jsonl \
         --config.comparisons_test=runs/prepared/comparisons_test.jsonl
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = ("default",)


def get_config(preset="default"):
    common.check_preset(preset, PRESETS, "prepare_comparisons")
    c = ConfigDict()
    c.stage = "prepare_comparisons"  # module in rlhf_jax/stages
    c.seed = 0  # decides which pairs length balancing drops
    # Files .jsonl, .json, .csv, .tsv or .parquet with commas between, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.comparisons = ""
    c.split = "train"  # of a data set
    c.layout = ""  # of the rows (data/reading/layouts.py); "": found from their fields
    c.on_bad_record = "error"  # or "skip": left out; bad_records.jsonl lists them
    c.tokenizer = ""  # a folder: lengths are in its tokens; "": one is trained
    c.vocab_size = 2048  # of a tokenizer trained here
    c.annotators = annotators()
    c.test_share = 0.05  # of the conversations, held out; not balanced by length
    c.length_bucket = 10  # tokens; the paper gives no width, and it matters little
    return c


def annotators() -> ConfigDict:
    """When an annotator is out (rlhf_jax/data/cleaning/annotator_quality.py). Who
    guesses gets half of the answers right and contradicts half of the repeats."""
    c = ConfigDict()
    c.min_known_right = 0.8  # out: the share of known answers right is certainly less
    c.max_contradicted = 0.3  # out: the share of repeats contradicted certainly more
    c.confidence = 0.9  # of the two-sided interval: certain means 19 to 1
    return c
