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
PRESETS = ("default", *common.STAGE_PRESETS)


def get_config(preset="default"):
    common.check_preset(preset, PRESETS, "prepare_comparisons")
    c = ConfigDict()
    c.stage = "prepare_comparisons"  # module in rlhf_jax/stages
    tiny = preset == "tiny"
    # Decides which pairs length balancing drops. [0, inf)
    c.seed = 0
    # Files .jsonl, .json, .csv, .tsv or .parquet with commas between, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.comparisons = ""
    # The split of a data set that is read.
    c.split = "train"
    # The layout of the rows (data/reading/layouts.py); "" finds it from their fields.
    c.layout = ""
    # What a bad record does: "error" stops the run, "skip" leaves it out and lists
    # it in bad_records.jsonl.
    c.on_bad_record = "error"
    # The folder of a tokenizer or of a model, in whose tokens lengths are counted; ""
    # trains one on the responses.
    c.tokenizer = ""
    # The number of tokens of a tokenizer that is trained here. [1, 2**20]
    c.vocab_size = 2048
    c.annotators = annotators()
    # Holds out this share of the conversations; they are not balanced by length. [0, 1)
    c.test_share = {"tiny": 0.1, "hh": 0.0}.get(preset, 0.05)
    # The width of a bucket of length balancing, in tokens; 0 means no balancing. The
    # paper gives no width, and it matters little. [0, inf)
    c.length_bucket = 4 if tiny else 10
    return c


def annotators() -> ConfigDict:
    """When an annotator is out (rlhf_jax/data/cleaning/annotator_quality.py). Who
    guesses gets half of the answers right and contradicts half of the repeats."""
    c = ConfigDict()
    # Leaves out an annotator whose share of known answers right is certainly lower.
    # [0, 1]
    c.min_known_right = 0.8
    # Leaves out an annotator whose share of contradicted repeats is certainly higher.
    # [0, 1]
    c.max_contradicted = 0.3
    # The confidence of the two-sided interval that "certainly" means: at 0.9, an honest
    # annotator at the limit is left out once in twenty. [0, 1]
    c.confidence = 0.9
    return c
