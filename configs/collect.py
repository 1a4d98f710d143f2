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
    c.prompts = ""  # a .jsonl file; "": the data folder's comparison_prompts.jsonl
    c.num_responses = 4  # to each prompt
    c.batch_size = 64  # prompts at a time
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out
    c.max_response_tokens = lengths.generated  # where generation stops
    c.temperature = 1.0  # divides the logits; 0: greedy
    c.top_k = 0  # sample of so many likeliest tokens; 0: of all
    c.top_p = 1.0  # sample of the likeliest that reach this probability
    c.annotator = "testbed"  # or "people": leaves tasks.jsonl for launch/annotate.py
    # For people; shares of the pairs that they compare.
    c.known_comparisons = ""  # .jsonl, whose answer is certain; "": the testbed's own
    c.known_share = 0.1  # tasks with a known answer, to measure annotators
    c.repeat_share = 0.1  # tasks shown to an annotator again, in the other order
    return c
