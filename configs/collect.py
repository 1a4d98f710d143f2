"""Comparisons of a model's responses, by annotators.

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
    small, lengths = common.is_small(preset), common.lengths(preset)
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
    # For the testbed.
    c.length_bucket = 4 if small else 50  # tokens; 0: no length balancing
    c.test_share = 0.1  # of the prompts, whose comparisons are held out
    return c
