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
    c.comparisons = ""  # a .jsonl file; "": the data folder's comparisons.jsonl
    c.comparisons_test = ""  # held out; "": the data folder's comparisons_test.jsonl
    human = preset == "hh"  # few comparisons
    # Of the training prompts, to choose the best model by. [0, 1)
    c.validation_share = {"hh": 0.1, "tiny": 0.05}.get(preset, 0.01)
    c.too_long = "truncate_prompt" if human else "drop"  # whole turns, the oldest first
    c.epochs = 2 if human else 1  # passes over the data [1, 2**20]
    c.batch_size = 32 if small else 128  # pairs [1, 2**20]
    c.max_prompt_tokens = lengths.prompt  # of longer ones too_long decides [1, 2**20]
    # 96 % of hh-rlhf [1, 2**20]
    c.max_response_tokens = 192 if human else lengths.response
    # Widths of batches: few widths, few programs. [1, 65536]
    c.pad_to_multiple = 16 if preset == "tiny" else 32 if preset == "hh" else 128
    c.score_regularisation = 0.01  # the paper gives no value [0, inf)
    c.margin = 0.0  # that the score of chosen shall have over rejected [0, inf)
    c.label_smoothing = 0.0  # the share of comparisons taken to be wrong [0, 0.5)
    c.num_centring_pairs = 512  # whose mean score becomes 0 at the end [1, inf)
    # steps; validation; 0: at the end alone [0, inf)
    c.eval_every = 50 if small else 100
    c.patience = 3 if human else 0  # evaluations none of them better; 0: go on [0, inf)
    c.save_every = 500  # steps; the end is always saved [0, inf)
    c.num_samples = 8  # held-out pairs written with their scores at the end [0, inf)
    return c
