"""Prompt selection by the variance of scores (ChatGLM-RLHF, arXiv 2404.00934).

Run: python launch/train.py --config=configs/select_prompts.py:tiny \
         --workdir=runs/selection --config.init_from=runs/sft \
         --config.reward_model=runs/reward
     and then PPO with --config.prompts=runs/selection/prompts.jsonl
Control, as many prompts at random: --config.choose=random
         --config.random_size_of=runs/selection --workdir=runs/random
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("select_prompts", preset)
    common.with_model(c, preset)
    lengths = common.lengths(preset)
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes prompts.jsonl of the data folder.
    c.prompts = ""
    # The workdir of a reward model (stages/reward.py); "" makes a random one, for
    # trials, and none where all rewards are functions.
    c.reward_model = ""
    # Samples this many responses to each prompt: the paper's K, whose value it does not
    # give. [1, inf)
    c.samples_per_prompt = 8
    # Drops prompts whose scores have a smaller variance. The scale is the reward
    # model's; summary.json has the quantiles. [0, inf)
    c.epsilon = 0.1
    # The prompts that are kept: "variance", those whose scores vary by epsilon or more;
    # "random", as many at random, the control of an experiment.
    c.choose = "variance"
    # The number of prompts that "random" keeps; no responses are sampled then. 0 leaves
    # it to random_size_of. [0, 2**24]
    c.random_size = 0
    # The workdir of a finished selection: "random" keeps as many prompts, and no
    # responses are sampled. "" with a random_size of 0 samples, and keeps as many as
    # "variance" would.
    c.random_size_of = ""
    # Decodes, and then scores, this many responses at once. [1, 2**20]
    c.batch_size = 64
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # Divides the logits before sampling; use the temperature of PPO. [0, inf)
    c.temperature = 1.0
    # The penalty subtracted from the score of a response that was cut at its limit, in
    # units of the score. [0, inf)
    c.missing_end_penalty = 1.0
    return c
