"""A reward model from comparisons (ChatGLM-RLHF, arXiv 2404.00934, section 2).

Run: python launch/train.py --config=configs/reward.py:tiny --workdir=runs/reward \
         --config.init_from=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("reward", preset)
    common.with_model(c, preset)
    common.with_training(c)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(5e-4 if small else 1e-5)
    # A .jsonl file of comparisons; "" takes comparisons.jsonl of the data folder.
    c.comparisons = ""
    # A .jsonl file of held-out comparisons; "" takes comparisons_test.jsonl of the data
    # folder.
    c.comparisons_test = ""
    human = preset == "hh"  # few comparisons
    # Holds out this share of the training prompts, to choose the best model by. [0, 1)
    c.validation_share = {"hh": 0.1, "tiny": 0.05}.get(preset, 0.01)
    # The treatment of pairs whose prompt is too long: "drop" leaves them out,
    # "truncate_prompt" removes whole turns, the oldest first.
    c.too_long = "truncate_prompt" if human else "drop"
    # The number of passes over the data. [1, 2**20]
    c.epochs = {"tiny": 3, "hh": 2}.get(preset, 1)
    # The number of pairs of an update. [1, 2**20]
    c.batch_size = 32 if small else 128
    # Limits prompts to this many tokens; too_long decides on longer ones. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Leaves out pairs with a longer response, in tokens; 192 keeps 96 % of hh-rlhf.
    # [1, 2**20]
    c.max_response_tokens = 192 if human else lengths.response
    # True packs the pairs of an update into rows as wide as the longest, each by itself
    # for the model, so that little is padding; False gives every pair a row of its own.
    c.pack = True
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 16 if preset == "tiny" else 32 if preset == "hh" else 128
    # The weight of the squared scores in the loss; 0 turns it off. The paper gives no
    # value. [0, inf)
    c.score_regularisation = 0.01
    # The difference of scores that the loss asks of chosen over rejected; 0 means none.
    # [0, inf)
    c.margin = 0.0
    # The share of the comparisons taken to be wrong. [0, 0.5)
    c.label_smoothing = 0.0
    # Shifts the scores at the end so that their mean over this many pairs is 0.
    # [1, inf)
    c.num_centring_pairs = 512
    # Validates every this many steps and at the end; 0 validates at the end alone.
    # [0, inf)
    c.eval_every = 50 if small else 100
    # Stops after this many validations in a row without a better one; 0 never stops
    # early. [0, inf)
    c.patience = 3 if human else 0
    # Saves a checkpoint every this many steps; 0 saves none but the last, which is
    # always saved. [0, inf)
    c.save_every = 500
    # Writes this many held-out pairs with their scores at the end; 0 writes none.
    # [0, inf)
    c.num_samples = 8
    return c
