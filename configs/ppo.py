"""PPO with the reference-reward baseline (ChatGLM-RLHF, arXiv 2404.00934, section 3).

Run: python launch/train.py --config=configs/ppo.py:tiny --workdir=runs/ppo \
         --config.init_from=runs/sft --config.reward_model=runs/reward
"""

from configs import common


def get_config(preset="tiny"):
    c = common.stage("ppo", preset)
    common.with_model(c, preset)
    common.with_training(c)
    # Positions projected to the vocabulary at once; 0: all. [0, inf)
    c.chunk_size = common.chunk_size(preset)
    small, lengths = common.is_small(preset), common.lengths(preset)
    # The paper's learning rate is 1e-6; a model of 1M parameters wants a larger one.
    c.optimizer = common.optimizer(1.5e-4 if small else 1e-6)
    c.value_optimizer = common.optimizer(1e-3 if small else 5e-6)
    for optimizer in (c.optimizer, c.value_optimizer):
        optimizer.decay = "constant"
        optimizer.weight_decay = 0.0
    c.reward_model = ""  # a workdir; "": a random one, for trying out
    # Of the reference and the reward model: stored, never updated.
    c.frozen_param_dtype = "float32" if small else "bfloat16"  # or "int8"
    # Weights that answer prompts: the "same" as are trained, or a copy in "int8", which
    # is faster to read; rollout/logprob_gap_mean and rollout/ratio_outside say how far
    # it is from the policy.
    c.rollout_param_dtype = "same"
    c.offload_frozen = False  # they wait in the host's memory while others are at work
    c.offload_moments = False  # the optimizers' wait there while nothing is updated
    c.reference = ""  # "": where the policy starts
    c.prompts = ""  # a .jsonl file; "": the data folder's prompts.jsonl
    c.eval_prompts = ""  # a .jsonl file; "": the data folder's eval_prompts.jsonl
    # Iterations; the paper: 600 to 800. [1, 2**24]
    c.total_steps = 24 if preset == "tiny" else 30 if preset == "hh" else 700
    # Responses an iteration: to batch_size / samples_per_prompt prompts. [1, 2**20]
    c.batch_size = 128 if preset == "tiny" else 32 if preset == "hh" else 256
    c.samples_per_prompt = 1  # "rloo" and "grpo" need 2 or more [1, inf)
    # grpo: added to the standard deviation of a prompt's scores [0, inf)
    c.group_epsilon = 1e-4
    c.ppo_epochs = 1  # passes over the responses of an iteration [1, 1024]
    c.minibatches = 4  # updates in a pass [1, inf)
    c.max_prompt_tokens = lengths.prompt  # longer ones are left out [1, 2**20]
    c.max_response_tokens = lengths.generated  # where generation stops [1, 2**20]
    # Widths of batches: few widths, few programs. [1, 65536]
    c.pad_to_multiple = 16 if small else 128
    # of sampling, and of the log-probabilities that are trained [0, inf)
    c.temperature = 1.0
    # "gae", with a value model; without one: "rloo", "grpo" (both with baseline "none"
    # and several samples a prompt), "remax" (with baseline "greedy" or "reference").
    c.advantage = "gae"
    # Whose answer's score is subtracted: "reference" is the paper's, computed once;
    # "greedy", the policy's own likeliest answer, is generated at every iteration.
    c.baseline = "reference"
    # The paper: no normalisation beside its baseline. Scores less their baseline by
    # their running moments; rewards (mean kept) and advantages over a batch's tokens.
    c.normalise_scores = False
    c.whiten_rewards = False  # without moving their mean
    c.whiten_advantages = False  # to mean 0 and variance 1
    c.kl_coef = 0.03  # price of a nat of KL to the reference [0, inf)
    c.kl_in_loss = False  # True: GRPO's k3 in the loss; False: in the rewards
    c.kl_target = 0.0  # nats a response; above 0, kl_coef adapts to it [0, inf)
    # responses in which kl_coef moves by the whole error (0, inf)
    c.kl_horizon = 10000.0
    # Nats a response above which the run stops with an error, and its newest checkpoint
    # is one below; inf: it never stops. (-inf, inf]
    c.kl_ceiling = 100.0
    c.gamma = 1.0  # discount of rewards, token by token [0, inf)
    c.lam = 0.95  # of generalised advantage estimation; 1: no bootstrapping [0, 1]
    c.clip_range = 0.2  # of the ratio of new and old probability (0, inf)
    # What the policy's loss is a mean over: "token", all tokens of a minibatch;
    # "response", the tokens of each response, then the responses (GRPO's paper).
    c.loss_aggregation = "token"
    c.dual_clip = 0.0  # bound of the loss where A < 0, above 1; 0.0: none [0, inf)
    # scores of the testbed spread by 1 (0, inf)
    c.value_clip_range = 1.0 if small else 0.2
    c.beta_sft = 0.5  # weight of the SFT loss; the paper gives no value [0, inf)
    c.sft_batch_size = 8 if small else 32  # dialogues an update [1, 2**20]
    c.max_sft_tokens = lengths.dialogue  # longer dialogues are left out [1, 2**20]
    c.missing_end_penalty = 1.0  # off the score of a response cut at its limit [0, inf)
    c.score_clip = 10.0  # bound of baselined scores, either side; inf: none (0, inf]
    c.eval_every = 8 if small else 20  # steps, and at the end; 0: never [0, inf)
    c.num_samples = 8  # conversations written at each evaluation [0, inf)
    c.save_every = 16 if small else 50  # steps, and at the end; 0: never [0, inf)
    return c
