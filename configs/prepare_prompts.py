"""Select prompts by rules, quality and intent.

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
    # The module in rlhf_jax/stages.
    c.stage = "prepare_prompts"
    # The seed that decides which prompts of a large intent are kept. [0, inf)
    c.seed = 0
    # Files .jsonl, .json, .csv, .tsv or .parquet, separated by commas, or data sets: a
    # folder, "hf:NAME[:SUBSET]" or "tfds:NAME" (data/reading/rows.py).
    c.prompts = ""
    # The split of a data set that is read.
    c.split = "train"
    # The field that holds the intent, in rows of another layout than our own.
    c.intent_field = "intent"
    # The treatment of a bad record: "error" stops the run; "skip" leaves the record out
    # and lists it in bad_records.jsonl.
    c.on_bad_record = "error"
    # Drops prompts whose last message has fewer characters. [0, inf)
    c.min_characters = 4
    # Drops prompts whose last message has more characters. [1, inf)
    c.max_characters = 8000
    # Keeps these languages: ISO 639-1 codes separated by commas, such as "zh,en"; ""
    # keeps all.
    c.languages = ""
    # Drops prompts whose Jaccard similarity of 5-grams with an earlier prompt is
    # higher; 1 drops none but exact duplicates. [0, 1]
    c.max_similarity = 0.8
    # The scorer of quality: "rules"; "judge", a chat model; "heads", reward models; or
    # "none".
    c.scorer = "rules"
    # Drops prompts with a lower score of clear intention, clear semantics or
    # answerability. [0, 1]
    c.min_score = 0.4
    # Reports intents with fewer prompts. [0, inf)
    c.min_per_intent = 20
    # Keeps at most this many prompts of each intent, drawn at random; 0 keeps all.
    # [0, inf)
    c.max_per_intent = 0
    # The chat model that scores prompts.
    c.judge = common.chat_service(max_tokens=64)
    # Reward models for scorer "heads", as
    # "intention=FOLDER,semantics=FOLDER,answerability=FOLDER", trained with the
    # questions of rlhf_jax/data/cleaning/prompt_quality.py as prompts.
    c.heads = ""
    # Scores this many prompts at once with a reward model. [1, 2**20]
    c.batch_size = 64
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 64
    # The dtype of the reward models' computation.
    c.dtype = "float32"
    # The precision of products of float32 matrices: "highest"; "high", three bfloat16
    # passes on TPUs and TF32 on GPUs; "default", one pass on TPUs and TF32 on GPUs;
    # "auto" is "highest" where dtype is float32, and "default" elsewhere. CPUs and
    # 16-bit matrices know one precision.
    c.matmul_precision = "auto"
    return c
