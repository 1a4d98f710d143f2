"""DPO on reward-labelled pairs (ChatGLM-RLHF, arXiv 2404.00934, section 4).

Run: python launch/train.py --config=configs/dpo.py:tiny --workdir=runs/dpo \
         --config.init_from=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("dpo", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Positions projected to the vocabulary at once; 0: all.
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(1.5e-4 if small else 1e-6)
    c.pairs = ""  # labelled pairs; "": the data folder's comparisons.jsonl
    c.epochs = 2 if small else 1  # passes over the data
    c.batch_size = 32 if small else 128  # pairs
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out
    # Of a pair: longer ones are left out; and of an evaluation's answers.
    c.max_response_tokens = lengths.response
    # Widths of batches: few widths, few programs.
    c.pad_to_multiple = 16 if preset == "tiny" else 32 if preset == "hh" else 128
    # "dpo", "robust", "ipo", "simpo" or "length_regularised": see losses/dpo.py
    c.loss = "dpo"
    c.beta = 0.1  # the pull to the reference; the paper gives no value; simpo wants 2
    c.label_smoothing = 0.0  # share of wrong labels: conservative for dpo, robust
    c.gamma = 0.0  # simpo: the margin to reach
    c.alpha = 0.0  # length_regularised: a token's price
    c.reference = "cached"  # its log-probabilities, once; "on_the_fly": every step
    c.reference_cache = ""  # a .npz file that runs may share; "": in the workdir
    c.reference_from = ""  # a policy; "": init_from
    c.beta_sft = 0.5  # weight of the SFT loss; the paper gives no value
    c.sft_batch_size = 8 if small else 32  # dialogues a step
    c.max_sft_tokens = lengths.dialogue  # longer dialogues are left out
    c.eval_every = 500  # steps, and at the end; 0: never
    c.eval_prompts = ""  # a .jsonl file; "": the data folder's eval_prompts.jsonl
    c.num_eval_prompts = 128  # answered at an evaluation, for KL and length
    c.num_samples = 8  # of these conversations written
    c.save_every = 500  # steps, and at the end; 0: never
    return c
