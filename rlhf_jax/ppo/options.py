"""The options of PPO: those that its compiled programs depend on, and those that
contradict each other; configs/ppo.py explains them."""

import dataclasses
import math
from pathlib import Path

from rlhf_jax.models.config import ChatGLMConfig
from rlhf_jax.parallel.mesh import check_batch
from rlhf_jax.parallel.pipelining import pipe_size
from rlhf_jax.rewards.rewards import check_options as check_rewards
from rlhf_jax.training import options, weights

ADVANTAGES = ("gae", "rloo", "grpo", "remax", "reinforce_pp")


@dataclasses.dataclass(frozen=True)
class Hyper:
    """Options of PPO that the compiled programs depend on; configs/ppo.py explains
    them.

    `num_tokens` is the size of the tokenizer's vocabulary.
    """

    num_tokens: int
    temperature: float
    chunk_size: int
    advantage: str
    samples_per_prompt: int
    max_response_tokens: int
    group_std: bool
    group_epsilon: float
    normalise_scores: bool
    whiten_rewards: bool
    whiten_advantages: bool
    missing_end_penalty: float
    mask_overlong: bool
    score_clip: float
    kl_coef: float
    kl_in_loss: bool
    kl_target: float
    kl_horizon: float
    reference_rate: float
    rollout_param_dtype: str
    prompts_ahead: int
    one_step_off_policy: bool
    rollout_correction: str
    rollout_weight_cap: float
    rollout_error_limit: float
    gamma: float
    lam: float
    objective: str
    clip_range: float
    clip_range_high: float
    dual_clip: float
    entropy_coef: float
    loss_aggregation: str
    value_clip_range: float
    beta_sft: float
    ppo_epochs: int
    minibatches: int
    microbatches: int

    @classmethod
    def from_config(cls, config, num_tokens: int) -> "Hyper":
        return options.of_fields(cls, config, num_tokens=num_tokens)

    @property
    def has_critic(self) -> bool:
        """True if the advantage needs a value model."""
        return self.advantage == "gae"

    @property
    def compares_groups(self) -> bool:
        """True if the advantage compares the responses to one prompt."""
        return self.advantage in ("rloo", "grpo")

    @property
    def correction_level(self) -> str | None:
        """The level of the weights that correct the sampler's distance from the
        trainer ("token" or "response"); None corrects nothing."""
        if self.rollout_correction == "auto":
            is_earlier = bool(self.prompts_ahead) or self.one_step_off_policy
            is_same = self.rollout_param_dtype == "same" and not is_earlier
            return None if is_same else "token"
        return None if self.rollout_correction == "none" else self.rollout_correction

    @property
    def num_updates(self) -> int:
        """The number of optimizer steps in one iteration."""
        return self.ppo_epochs * self.minibatches


def check_options(config) -> None:
    """Refuse options that contradict each other, before anything is read or compiled.

    Raises:
        ValueError: names the options and what to set instead.
    """
    if pipe_size() > 1:
        raise ValueError(
            "PPO has no pipeline: it generates in every iteration, and generation in a "
            "pipeline is idle for about 80 % of the time (ChatGLM-RLHF, section 5). "
            f"Give the mesh's pipe={pipe_size()} to data, fsdp or tensor."
        )
    options.one_of(config, "advantage", ADVANTAGES)
    options.one_of(config, "baseline", ("reference", "greedy", "none"))
    if config.baseline_samples != 1 and config.baseline != "reference":
        raise ValueError(
            f"{config.baseline_samples=} counts the reference's answers, of which "
            f"baseline={config.baseline!r} has none: set baseline='reference', or "
            "baseline_samples=1."
        )
    options.multiple_of(config, "batch_size", "samples_per_prompt")
    check_rewards(config)
    parts = config.minibatches * config.microbatches
    check_batch("batch_size", config.batch_size, parts=parts)
    options.fused_updates(config)
    options.adapters(config)
    weights.computation(config)
    if config.beta_sft:
        check_batch("sft_batch_size", config.sft_batch_size, parts=config.microbatches)
    if config.advantage in ("rloo", "grpo"):
        if config.samples_per_prompt < 2:
            raise ValueError(
                f"advantage={config.advantage!r} compares the responses to one prompt: "
                "set samples_per_prompt to 2 or more."
            )
        if config.baseline != "none":
            raise ValueError(
                f"baseline={config.baseline!r} cancels out of advantage="
                f"{config.advantage!r}, which subtracts the group's mean: set "
                "baseline='none'."
            )
    if config.advantage == "remax" and config.baseline == "none":
        raise ValueError(
            "advantage='remax' is the score minus a baseline's: set baseline='greedy', "
            "or 'reference'."
        )
    if config.max_draws and config.advantage not in ("rloo", "grpo"):
        raise ValueError(
            f"{config.max_draws=} looks for prompts whose responses differ in their "
            "score: it needs advantage='grpo' or 'rloo', not "
            f"{config.advantage!r}."
        )
    if config.prompts_ahead and config.max_draws:
        raise ValueError(
            f"{config.prompts_ahead=} has no fixed batch of prompts that "
            f"{config.max_draws=} could replace: set one of the two to 0."
        )
    if config.one_step_off_policy and config.max_draws:
        raise ValueError(
            "one_step_off_policy=True samples the next batch before "
            f"{config.max_draws=} knows how often to draw: set one of the two to False "
            "or 0."
        )
    for name in ("prompts_ahead", "one_step_off_policy"):
        if config[name] and config.rollout_correction == "none":
            raise ValueError(
                f"{name}={config[name]} learns from responses that an earlier policy "
                "began: set rollout_correction to 'auto', 'token' or 'response'."
            )
    if config.replay_routing:
        check_replay(config, weights.start_config(config))
    for name in ("prompts_ahead", "one_step_off_policy"):
        if config.replay_routing and config[name]:
            raise ValueError(
                f"replay_routing=True keeps no experts of responses from {name}="
                f"{config[name]}: set one of the two to False or 0."
            )
    if config.whiten_rewards and config.advantage != "gae":
        raise ValueError("whiten_rewards needs the token rewards of advantage='gae'.")
    if config.whiten_advantages and config.advantage == "reinforce_pp":
        raise ValueError(
            "advantage='reinforce_pp' whitens its advantages: leave whiten_advantages "
            "False."
        )
    if not config.group_std and config.advantage != "grpo":
        raise ValueError(
            f"group_std=False needs advantage='grpo'; {config.advantage!r} divides by "
            "no standard deviation."
        )
    if config.mask_overlong and config.missing_end_penalty:
        raise ValueError(
            f"{config.missing_end_penalty=} is for responses without an end, which "
            "mask_overlong=True leaves out: set one of the two to 0 or False."
        )
    if config.dual_clip and config.objective == "cispo":
        raise ValueError(
            f"{config.dual_clip=} bounds the losses 'ppo' and 'gspo'; the clip of "
            "objective='cispo' bounds every weight: set dual_clip=0."
        )
    if config.reference_rate and config.baseline == "reference":
        raise ValueError(
            f"{config.reference_rate=} moves the reference, whose answers "
            "baseline='reference' scores once: set baseline='none' or 'greedy'."
        )
    if config.rollout_param_dtype == "merged" and not config.lora.rank:
        raise ValueError(
            "rollout_param_dtype='merged' merges adapters: set lora.rank, or "
            "rollout_param_dtype='same'."
        )
    for name in ("offload_frozen", "reference_rate"):
        if config.lora.rank and config[name]:
            raise ValueError(
                f"{name}={config[name]} is for a reference of its own, which with "
                f"lora.rank={config.lora.rank} shares the policy's base: leave {name} "
                "at its default."
            )
    if config.reference_rate and config.param_dtype != "float32":
        raise ValueError(
            f"{config.param_dtype=} rounds the small steps of a moving reference away: "
            "set param_dtype='float32', or reference_rate=0."
        )
    if config.temperature == 0:
        raise ValueError(
            f"{config.temperature=}: PPO learns from samples, and greedy answers are "
            "not samples: set it above 0, 1.0 for the policy's own distribution."
        )
    if config.judge_model and not config.eval_every:
        raise ValueError(
            f"{config.judge_model=} judges the answers of evaluations, of which "
            "eval_every=0 makes none: set it to 1 or more, or leave judge_model empty."
        )
    if config.judge_model and _same(config.judge_model, config.reward_model):
        raise ValueError(
            f"{config.judge_model=} is the reward_model, which the policy is trained "
            "against: name a reward model of other comparisons."
        )
    if config.stop_over_optimised and not config.judge_model:
        raise ValueError(
            "stop_over_optimised=True stops where a judge's score falls: name one in "
            "judge_model, or leave stop_over_optimised False."
        )
    if math.isnan(config.kl_ceiling):
        raise ValueError(f"{config.kl_ceiling=}: set a number, or inf for no ceiling.")
    if 0 < config.dual_clip <= 1:
        raise ValueError(f"{config.dual_clip=} must be above 1, or 0 for none.")


def _same(folder: str, other: str) -> bool:
    return bool(other) and Path(folder).resolve() == Path(other).resolve()


def check_replay(config, model: ChatGLMConfig) -> None:
    """Refuse to keep the experts of a policy that has none.

    Raises:
        ValueError: names the options and what to set instead.
    """
    if config.replay_routing and not model.num_experts:
        raise ValueError(
            "replay_routing=True replays the experts of tokens, and the policy, "
            f"{config.init_from or config.model}, has none: set it to False."
        )
