"""DPO on reward-labelled pairs (ChatGLM-RLHF, arXiv 2404.00934, section 4).

Run: python launch/train.py --config=configs/dpo.py:tiny --workdir=runs/dpo \
         --config.init_from=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("dpo", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Positions projected to the vocabulary at once; 0: all. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(1.5e-4 if small else 1e-6)
    c.pairs = ""  # labelled pairs; "": the data folder's comparisons.jsonl
    c.epochs = 2 if small else 1  # passes over the data [1, 2**20]
    c.batch_size = 32 if small else 128  # pairs [1, 2**20]
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out [1, 2**20]
    # Of a pair: longer ones are left out; and of an evaluation's answers. [1, 2**20]
    c.max_response_tokens = lengths.response
    # Widths of batches: few widths, few programs. [1, 65536]
    c.pad_to_multiple = 16 if preset == "tiny" else 32 if preset == "hh" else 128
    # "dpo", "robust", "ipo", "simpo" or "length_regularised": see losses/dpo.py
    c.loss = "dpo"
    # the pull to the reference; the paper gives no value; simpo wants 2 (0, inf)
    c.beta = 0.1
    # share of wrong labels: conservative for dpo, robust [0, 0.5)
    c.label_smoothing = 0.0
    c.gamma = 0.0  # simpo: the margin to reach [0, inf)
    c.alpha = 0.0  # length_regularised: a token's price [0, inf)
    c.reference = "cached"  # its log-probabilities, once; "on_the_fly": every step
    c.reference_cache = ""  # a .npz file that runs may share; "": in the workdir
    c.reference_from = ""  # a policy; "": init_from
    c.beta_sft = 0.5  # weight of the SFT loss; the paper gives no value [0, inf)
    c.sft_batch_size = 8 if small else 32  # dialogues a step [1, 2**20]
    c.max_sft_tokens = lengths.dialogue  # longer dialogues are left out [1, 2**20]
    c.eval_every = 500  # steps, and at the end; 0: never [0, inf)
    c.eval_prompts = ""  # a .jsonl file; "": the data folder's eval_prompts.jsonl
    c.num_eval_prompts = 128  # answered at an evaluation, for KL and length [1, 2**24]
    c.num_samples = 8  # of these conversations written [0, inf)
    c.save_every = 500  # steps, and at the end; 0: never [0, inf)
    return c
