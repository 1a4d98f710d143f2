"""Which prompts are worth asking: by rules, quality and intents.

Run: python launch/prepare_prompts.py --config=configs/prepare_prompts.py \
         --workdir=runs/prompts --config.prompts=requests.jsonl,more.jsonl.gz
     python launch/collect.py --config=configs/collect.py:tiny --workdir=runs/collect \
         --config.init_from=runs/sft --config.prompts=runs/prompts/prompts.jsonl
"""

from ml_collections import ConfigDict

from configs import common

PRESETS = ("default",)


def get_config(preset="default"):
    common.check_preset(preset, PRESETS, "prepare_prompts")
    c = ConfigDict()
    c.stage = "prepare_prompts"  # module in rlhf_jax/stages
    c.seed = 0  # decides which prompts of a large intent stay [0, inf)
    # Files .jsonl, .json, .csv, .tsv or .parquet with commas between, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.prompts = ""
    c.split = "train"  # of a data set
    c.intent_field = "intent"  # of rows that are not in our own layout
    c.on_bad_record = "error"  # or "skip": left out; bad_records.jsonl lists them
    c.min_characters = 4  # of the last message [0, inf)
    c.max_characters = 8000  # of the last message [1, inf)
    c.languages = ""  # ISO 639-1 with commas between, "zh,en"; "": any
    # Jaccard of 5-grams; above it a near-duplicate; 1: none [0, 1]
    c.max_similarity = 0.8
    c.scorer = "rules"  # or "judge", "heads", "none"
    # of clear intention, clear semantics and answerability each [0, 1]
    c.min_score = 0.4
    c.min_per_intent = 20  # fewer is reported [0, inf)
    c.max_per_intent = 0  # more are drawn from at random; 0: no limit [0, inf)
    c.judge = common.chat_service(max_tokens=64)
    # Reward models, "intention=FOLDER,semantics=FOLDER,answerability=FOLDER", trained
    # with the questions of rlhf_jax/data/cleaning/prompt_quality.py as prompts.
    c.heads = ""
    c.batch_size = 64  # prompts at a time through a head [1, 2**20]
    c.pad_to_multiple = 64  # widths of batches: few widths, few programs [1, 65536]
    c.dtype = "float32"  # of the heads' computation
    return c
