"""Make a clean, length-balanced set of raw comparisons, from files to files.

Run: python launch/prepare_comparisons.py --config=configs/prepare_comparisons.py \
         --workdir=runs/prepared --config.comparisons=answers.jsonl,more.jsonl.gz
     python launch/train.py --config=configs/reward.py:tiny --workdir=runs/reward \
         --config.comparisons=runs/prepared/comparisons.jsonl \
         --config.comparisons_test=runs/prepared/comparisons_test.jsonl
"""

from ml_collections import ConfigDict

from configs import common

# "tiny" suits the comparisons of collect on the testbed; "hh" a data set that has a
# test split.
PRESETS = ("default", *common.STAGE_PRESETS)


def get_config(preset="default"):
    common.check_preset(preset, PRESETS, "prepare_comparisons")
    c = ConfigDict()
    # The module in rlhf_jax/stages.
    c.stage = "prepare_comparisons"
    tiny = preset == "tiny"
    # The seed of length balancing: which pairs are dropped. [0, inf)
    c.seed = 0
    # Files .jsonl, .json, .csv, .tsv or .parquet, separated by commas, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.comparisons = ""
    # The split of a data set that is read.
    c.split = "train"
    # The layout of the rows (data/reading/layouts.py); "" recognises it by their
    # fields.
    c.layout = ""
    # The treatment of a bad record: "error" stops the run; "skip" leaves the record out
    # and lists it in bad_records.jsonl.
    c.on_bad_record = "error"
    # The folder of a tokenizer or of a model, in whose tokens lengths are counted; ""
    # trains one on the responses.
    c.tokenizer = ""
    # The number of tokens of a tokenizer that is trained here. [1, 2**20]
    c.vocab_size = 2048
    c.annotators = annotators()
    # Holds out this share of the conversations; they are not balanced by length. [0, 1)
    c.test_share = {"tiny": 0.1, "hh": 0.0}.get(preset, 0.05)
    # The width of a bucket of length balancing, in tokens; 0 turns balancing off. The
    # paper gives no width, and the results differ little between widths. [0, inf)
    c.length_bucket = 4 if tiny else 10
    return c


def annotators() -> ConfigDict:
    """The limits of annotators (rlhf_jax/data/cleaning/annotator_quality.py). An
    annotator who guesses gets half of the known answers right and contradicts half of
    the repeats."""
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
