"""Comparisons of a model's responses, by annotators: raw, for prepare_comparisons.

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
    # A .jsonl file of prompts; "" means comparison_prompts.jsonl of the data folder.
    c.prompts = ""
    # Samples so many responses to each prompt. [1, 1024]
    c.num_responses = 4
    # Decodes so many responses side by side. [1, 2**20]
    c.batch_size = 64
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at so many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; 0 takes the likeliest token. [0, inf)
    c.temperature = 1.0
    # Samples among so many of the likeliest tokens; 0 means all. [0, inf)
    c.top_k = 0
    # Samples among the likeliest tokens that together reach this probability; 1 means
    # all. (0, 1]
    c.top_p = 1.0
    # Who compares: "testbed" leaves comparisons.jsonl, "people" leaves tasks.jsonl
    # for launch/annotate.py.
    c.annotator = "testbed"
    # A .jsonl file of comparisons whose answer is certain, for people; "" means the
    # testbed's own.
    c.known_comparisons = ""
    # Adds tasks with a known answer, which measure the annotators, as this share of
    # the pairs; for people. [0, 1]
    c.known_share = 0.1
    # Shows an annotator tasks again in the other order, as this share of the pairs;
    # for people. [0, 0.5]
    c.repeat_share = 0.1
    return c
