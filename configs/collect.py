"""Raw comparisons of a model's responses by annotators, for prepare_comparisons.

Run: python launch/collect.py --config=configs/collect.py:tiny --workdir=runs/collect \
         --config.init_from=runs/sft
     the same with --config.annotator=people, for people to compare; then
     python launch/annotate.py --workdir=runs/collect
     python launch/exchange.py --workdir=runs/collect --import=page
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("collect", preset)
    common.with_model(c, preset)
    lengths = common.lengths(preset)
    # A .jsonl file of prompts; "" takes comparison_prompts.jsonl of the data folder, or
    # prompts.jsonl where that is missing.
    c.prompts = ""
    # Samples this many responses to each prompt. [1, 1024]
    c.num_responses = 5 if preset == "tiny" else 4
    # Decodes this many responses side by side. [1, 2**20]
    c.batch_size = 64
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; 0 takes the likeliest token. [0, inf)
    c.temperature = 1.0
    # Samples among this many of the likeliest tokens; 0 means all. [0, inf)
    c.top_k = 0
    # Samples among the likeliest tokens that together reach this probability; 1 means
    # all. (0, 1]
    c.top_p = 0.95 if preset == "tiny" else 1.0
    # The annotators: "testbed" simulates them and writes comparisons.jsonl; "people"
    # writes tasks.jsonl for launch/annotate.py.
    c.annotator = "testbed"
    # A .jsonl file of comparisons whose answer is certain, mixed into the tasks of
    # people; "" takes those of the testbed.
    c.known_comparisons = ""
    # Adds tasks with a certain answer, which measure the annotators, as this share of
    # the pairs; 0 adds none. Applies to people. [0, 1]
    c.known_share = 0.1
    # Shows an annotator some tasks again in the other order, as this share of the
    # pairs; 0 repeats none. Applies to people. [0, 0.5]
    c.repeat_share = 0.1
    return c
