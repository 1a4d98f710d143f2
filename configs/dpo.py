"""DPO on reward-labelled pairs (ChatGLM-RLHF, arXiv 2404.00934, section 4).

Run: python launch/train.py --config=configs/dpo.py:tiny --workdir=runs/dpo \
         --config.init_from=runs/sft
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("dpo", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Projects this many positions of a row to the vocabulary at once, to save memory; 0
    # projects all of them at once. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    c.optimizer = common.optimizer(1.5e-4 if small else 1e-6)
    # A .jsonl file of labelled pairs; "" takes comparisons.jsonl of the data folder.
    c.pairs = ""
    # The number of passes over the data. [1, 2**20]
    c.epochs = 2 if small else 1
    # The number of pairs of an update. [1, 2**20]
    c.batch_size = 32 if small else 128
    # Leaves out pairs whose prompt is longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Leaves out pairs with a longer response, in tokens; also cuts the answers of an
    # evaluation. [1, 2**20]
    c.max_response_tokens = lengths.response
    # True packs the pairs of an update into rows as wide as the longest, each by itself
    # for the model, so that little is padding; False gives every pair a row of its own.
    c.pack = True
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 16 if preset == "tiny" else 32 if preset == "hh" else 128
    # The loss: "dpo", "robust", "ipo", "simpo", "length_regularised"
    # (rlhf_jax/losses/dpo.py), "kto" (kto.py), on the two responses of a pair apart,
    # or "orpo" (orpo.py), without a reference.
    c.loss = "dpo"
    # The strength of the pull to the reference; the paper gives no value. SimPO works
    # with values about 2. The weight of the odds ratio in ORPO. (0, inf)
    c.beta = 0.1
    # The share of the labels taken to be wrong, for "dpo" (then conservative DPO) and
    # "robust". [0, 0.5)
    c.label_smoothing = 0.0
    # The margin of the rewards that SimPO aims at; 0 means none. [0, inf)
    c.gamma = 0.0
    # The penalty per token of difference in length, for "length_regularised"; 0 means
    # none. [0, inf)
    c.alpha = 0.0
    # The weight of the chosen responses in KTO. [0, inf)
    c.desirable_weight = 1.0
    # The weight of the rejected responses in KTO. [0, inf)
    c.undesirable_weight = 1.0
    # The log-probabilities of the reference: "cached" computes them once, "on_the_fly"
    # at every step, as KTO must.
    c.reference = "cached"
    # A .npz file for the cached log-probabilities, which runs may share; "" keeps them
    # in the workdir.
    c.reference_cache = ""
    # The reference policy: a workdir or a Hugging Face folder; "" takes init_from.
    c.reference_from = ""
    # The weight of the SFT loss; 0 turns the term off. The paper gives no value.
    # [0, inf)
    c.beta_sft = 0.5
    # The number of dialogues of the SFT term in an update. [1, 2**20]
    c.sft_batch_size = 8 if small else 32
    # Leaves out dialogues of the SFT term that are longer, in tokens. [1, 2**20]
    c.max_sft_tokens = lengths.dialogue
    # True trains on the thought that an answer of these dialogues begins with, up to
    # "</think>"; False trains on what follows the thought alone.
    c.train_on_thoughts = True
    # Evaluates every this many steps and at the end; 0 never evaluates. [0, inf)
    c.eval_every = 500
    # A .jsonl file of evaluation prompts; "" takes eval_prompts.jsonl of the data
    # folder.
    c.eval_prompts = ""
    # Answers this many prompts at an evaluation, for KL and length. [1, 2**24]
    c.num_eval_prompts = 128
    # Writes this many of these conversations to samples.jsonl; 0 writes none. [0, inf)
    c.num_samples = 8
    # Saves a checkpoint every this many steps and at the end; 0 saves none. [0, inf)
    c.save_every = 500
    return c
