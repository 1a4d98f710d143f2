"""PPO with the reference-reward baseline (ChatGLM-RLHF, arXiv 2404.00934, section 3).

Run: python launch/train.py --config=configs/ppo.py:tiny --workdir=runs/ppo \
         --config.init_from=runs/sft --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("ppo", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Projects this many positions of a row to the vocabulary at once, to save memory; 0
    # projects all of them at once. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    # The paper's learning rate is 1e-6; a model of 1M parameters wants a larger one.
    c.optimizer = common.optimizer({"tiny": 3e-4, "hh": 1.5e-4}.get(preset, 1e-6))
    c.value_optimizer = common.optimizer(1e-3 if small else 5e-6)
    for optimizer in (c.optimizer, c.value_optimizer):
        optimizer.decay = "constant"
        optimizer.weight_decay = 0.0
    # The workdir of a reward model; "" makes a random one, for trials, and none where
    # all rewards are functions.
    c.reward_model = ""
    # The workdir of a second reward model, of comparisons that reward_model has not
    # seen: it judges the answers of every evaluation and is never trained against. The
    # log warns where the score learned from rises while the judge's falls beyond its
    # noise; "" has no judge.
    c.judge_model = ""
    # True ends the run with an error at such a warning and keeps the checkpoint that
    # the judge scores highest; False goes on.
    c.stop_over_optimised = False
    # The dtype in which the reference, the reward model and the judge, which are never
    # updated, are stored: a float or "int8". With adapters, lora.base_dtype takes its
    # place.
    c.frozen_param_dtype = "float32" if small else "bfloat16"
    # The weights that sample responses: "same", the trained ones; "merged", a copy into
    # whose matrices the adapters are added; or a copy in "int8", which is faster to
    # read, adapters merged. rollout/logprob_gap_mean and rollout/ratio_outside measure
    # its distance from the policy.
    c.rollout_param_dtype = "same"
    # True keeps the experts to which a mixture of experts sent each token of prompt and
    # response when it sampled, and sends the token there again where the policy scores
    # and learns (routing replay), so that no rounding makes another choice. The
    # reference and the critic choose by themselves. False lets the policy choose again.
    c.replay_routing = False
    # The number of responses that are sampled side by side: when one has ended, another
    # takes its row. Few rows leave few of them idle, many make use of a fast device; 0
    # samples all responses of an iteration side by side. [0, 2**20]
    c.rollout_rows = 0
    # Begins this many prompts besides those of an iteration: it learns from those whose
    # responses are done first, and the others go on in the next iteration, with the
    # policy of then. rollout_correction weighs what an earlier policy sampled. 0 waits
    # for every response. [0, 2**16]
    c.prompts_ahead = 0
    # True samples the responses of the next iteration while the functions of rewards
    # run on the host, hence with the policy before this iteration's update;
    # rollout_correction weighs them. False samples them after the update.
    c.one_step_off_policy = False
    # The importance weights of the policy loss that correct the distance between
    # sampler and policy: one for each "token", one for each "response", or "none";
    # "auto" is "token" with a rollout_param_dtype other than "same", prompts_ahead or
    # one_step_off_policy, and otherwise "none".
    c.rollout_correction = "auto"
    # Cuts these weights at this; inf cuts none. [1, inf]
    c.rollout_weight_cap = 2.0
    # Leaves responses out of the update whose log-probabilities under sampler and
    # policy differ by more than this many nats per token, on average; inf leaves out
    # none. Without a correction none is left out. (0, inf]
    c.rollout_error_limit = 0.5
    # True keeps the reference, the reward model and the judge in the host's memory
    # while they are not used.
    c.offload_frozen = False
    # True keeps the optimizers' moments in the host's memory while nothing is updated.
    c.offload_moments = False
    # The reference policy: a workdir or a Hugging Face folder; "" takes init_from.
    c.reference = ""
    common.with_rewards(c)
    # A .jsonl file of prompts; "" takes prompts.jsonl of the data folder.
    c.prompts = ""
    # A .jsonl file of evaluation prompts; "" takes eval_prompts.jsonl of the data
    # folder.
    c.eval_prompts = ""
    # The number of iterations; 600 to 800 in the paper. [1, 2**24]
    c.total_steps = 32 if preset == "tiny" else 30 if preset == "hh" else 700
    # The number of responses of an iteration, to batch_size / samples_per_prompt
    # prompts. [1, 2**20]
    c.batch_size = 128 if preset == "tiny" else 32 if preset == "hh" else 256
    # Samples this many responses to each prompt; "rloo" and "grpo" need 2 or more.
    # [1, inf)
    c.samples_per_prompt = 1
    # Draws prompts until the batch is full of prompts whose responses differ in their
    # score, at most this many times in an iteration; prompts whose scores are all equal
    # have no part in the update. 0 draws once and keeps all prompts. [0, 1024]
    c.max_draws = 0
    # True divides GRPO's advantages by the standard deviation of the prompt's scores;
    # False is Dr. GRPO.
    c.group_std = True
    # The number that GRPO adds to the standard deviation of a prompt's scores, against
    # division by zero. [0, inf)
    c.group_epsilon = 1e-4
    # The number of passes over the responses of an iteration. [1, 1024]
    c.ppo_epochs = 1
    # The number of updates in a pass. [1, inf)
    c.minibatches = 4
    # Leaves out prompts that are longer, in tokens. [1, 2**20]
    c.max_prompt_tokens = lengths.prompt
    # Cuts a response at this many tokens, its end token included. [1, 2**20]
    c.max_response_tokens = lengths.generated
    # True packs several prompts with their responses into a row, each by itself for the
    # models that score and are updated, so that little is padding; False gives every
    # response a row of its own.
    c.pack = True
    # Rounds the widths of batches up to a multiple of this many tokens: few widths need
    # few compiled programs. [1, 65536]
    c.pad_to_multiple = 16 if small else 128
    # The temperature of sampling and of the trained log-probabilities. [0, inf)
    c.temperature = 1.0
    # The advantage: "gae", with a value model; or without one "rloo" or "grpo" (both
    # with baseline "none" and two or more samples per prompt), "remax" (with baseline
    # "greedy" or "reference") or "reinforce_pp" (REINFORCE++: returns, normalised over
    # the batch).
    c.advantage = "gae"
    # The answer whose score is subtracted: "reference" takes the reference policy's,
    # scored once, as in the paper; "greedy" the policy's own likeliest answer,
    # generated at every iteration; "none" subtracts nothing.
    c.baseline = "reference"
    # The number of the reference's sampled answers to a prompt whose mean score is the
    # baseline "reference", 1 in the paper; 0 takes its likeliest answer.
    # launch/evaluate.py --config=configs/compare_baselines.py measures which number
    # lowers the variance of the scores. [0, 1024]
    c.baseline_samples = 1
    # True shifts and scales baselined scores by their running mean and standard
    # deviation. The paper's only normalisation is its baseline.
    c.normalise_scores = False
    # True scales the rewards of a batch's tokens to variance 1 and keeps their mean.
    c.whiten_rewards = False
    # True normalises the advantages of a batch's tokens to mean 0 and variance 1.
    c.whiten_advantages = False
    # The coefficient of the KL divergence to the reference, in units of the score per
    # nat; 0 turns it off. [0, inf)
    c.kl_coef = 0.03
    # True adds GRPO's k3 estimate of the KL divergence to the loss; False subtracts the
    # KL from the rewards.
    c.kl_in_loss = False
    # The KL divergence, in nats per response, that kl_coef is adapted to; 0.0 keeps
    # kl_coef constant. [0, inf)
    c.kl_target = 0.0
    # The number of responses over which kl_coef moves by the whole relative error.
    # (0, inf)
    c.kl_horizon = 10000.0
    # The KL divergence, in nats per response, above which the run stops with an error;
    # the newest checkpoint is then below it. inf never stops the run. (-inf, inf]
    c.kl_ceiling = 100.0
    # Moves the reference this share of the way to the policy after every iteration; 0
    # keeps the reference fixed. KL and kl_ceiling are then those to the moving
    # reference. [0, 1]
    c.reference_rate = 0.0
    # The discount of rewards per token; 1 does not discount. [0, inf)
    c.gamma = 1.0
    # The lambda of generalised advantage estimation; 1 does not bootstrap. [0, 1]
    c.lam = 0.95
    # The policy loss: "ppo" clips the ratio of each token, "gspo" the ratio of each
    # response, and "cispo" the weight of each token's log-probability
    # (rlhf_jax/losses/ppo.py).
    c.objective = "ppo"
    # Clips the ratio of new and old probability to 1 minus and plus this; GSPO's ratios
    # want a range about 1000 times smaller. (0, inf)
    c.clip_range = 0.2
    # Clips the ratio to 1 plus this instead, as in DAPO's clip-higher; 0.0 takes
    # clip_range. [0, inf)
    c.clip_range_high = 0.0
    # The mean in the policy loss: "token", over all tokens of a minibatch; "response",
    # over the tokens of each response and then over the responses, as in GRPO's paper;
    # "constant", the sum over tokens divided by max_response_tokens and the number of
    # responses, as in Dr. GRPO's.
    c.loss_aggregation = "token"
    # The weight of the policy's entropy in the loss, which keeps the policy from
    # becoming certain too soon; 0 turns the term off. [0, inf)
    c.entropy_coef = 0.0
    # Bounds the loss of negative advantages to this multiple of the advantage's size;
    # must be above 1, or 0.0 for no bound. [0, inf)
    c.dual_clip = 0.0
    # Clips the change of a value in an iteration to this, in units of the score; scores
    # of the testbed have a standard deviation of about 1. (0, inf)
    c.value_clip_range = 1.0 if small else 0.2
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
    # The penalty subtracted from the score of a response that was cut at its limit, in
    # units of the score. [0, inf)
    c.missing_end_penalty = 1.0
    # True leaves responses that were cut at their limit out of the update.
    c.mask_overlong = False
    # Clips baselined scores to this on either side; inf does not clip. (0, inf]
    c.score_clip = 10.0
    # Evaluates every this many iterations and at the end; 0 never evaluates. [0, inf)
    c.eval_every = 8 if small else 20
    # Writes this many conversations to samples.jsonl at each evaluation. [0, inf)
    c.num_samples = 8
    # Saves a checkpoint every this many iterations and at the end; 0 saves none.
    # [0, inf)
    c.save_every = 16 if small else 50
    return c
