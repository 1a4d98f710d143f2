"""The state of PPO: what is trained, what is frozen, and the items of a checkpoint."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from rlhf_jax.data.tokenizers.tokenizer import Tokenizer
from rlhf_jax.generation.partial_rollout import Begun
from rlhf_jax.losses import advantages as estimators
from rlhf_jax.models.heads import ScoreModel
from rlhf_jax.models.policy import Policy
from rlhf_jax.parallel.sharding import fetch, replicate
from rlhf_jax.ppo.options import Hyper
from rlhf_jax.ppo.rollouts import Answered
from rlhf_jax.training import model_records, weights
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, from_items, to_items


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PPOState:
    """Training state: the policy, the value model (None without a critic), a moving
    reference (None where `Frozen` holds it), the KL coefficient, and the moments of all
    scores so far (for `normalise_scores`)."""

    policy: TrainState
    value: TrainState | None
    reference: Policy | None
    kl_coef: Float[Array, ""]
    moments: estimators.RunningMoments

    @classmethod
    def create(
        cls,
        policy,
        value,
        reference=None,
        *,
        policy_optimizer: Optimizer,
        value_optimizer: Optimizer,
        hyper: Hyper,
    ) -> "PPOState":
        """Create the initial state; `value` is None without a critic, and `reference`
        where the reference does not move."""
        return cls(
            policy=TrainState.create(policy, policy_optimizer),
            value=None if value is None else TrainState.create(value, value_optimizer),
            reference=reference,
            **first_numbers(hyper),
        )


def first_numbers(hyper: Hyper) -> dict:
    """Return the first values of the fields of PPOState that belong to no model."""
    return {
        "kl_coef": jnp.float32(hyper.kl_coef),
        "moments": estimators.init_moments(),
    }


def move_reference(reference: Policy, policy: Policy, *, rate: float) -> Policy:
    """Move the reference's weights towards the policy's: the exponential moving average

    reference <- reference + rate (policy - reference).

    A rate of 0 leaves the reference where it is; with 1 it becomes the policy. WARP,
    Ramé et al. (2024), arXiv 2406.16768, section 3.1.
    """
    return jax.tree.map(
        lambda old, new: old + rate * (new - old).astype(old.dtype), reference, policy
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Frozen models: the reference of the KL (None where it moves), and the reward
    model (None where all rewards are functions)."""

    reference: Policy | None
    reward: ScoreModel | None


def to_checkpoint(
    state: PPOState, begun: Begun | None = None, ahead: Answered | None = None
) -> dict:
    """Split the state, what is begun and what is answered ahead into checkpoint items,
    one per model, so each model loads alone."""
    items = to_items(state.policy)
    if state.value is not None:
        items |= to_items(state.value, "value")
    if state.reference is not None:
        items["reference"] = state.reference
    if begun is not None:
        items["begun"] = replicate(begun)
    if ahead is not None:
        items["ahead"] = replicate(fetch(ahead))
    return items | {"rest": {"kl_coef": state.kl_coef, "moments": state.moments}}


def from_checkpoint(items: dict) -> PPOState:
    """Build the state from checkpoint items; the inverse of `to_checkpoint`."""
    return PPOState(
        policy=from_items(items),
        value=from_items(items, "value") if "value" in items else None,
        reference=items.get("reference"),
        **items["rest"],
    )


def describe(
    state: PPOState,
    tokenizer: Tokenizer,
    config: ConfigDict,
    adapters: weights.Adapters,
    workdir: Path,
) -> dict:
    """Return the record of a checkpoint's models."""
    base = adapters.base(config.init_from, workdir)
    models = {"model": model_records.describe(state.policy.model, tokenizer, base)}
    if state.value is not None:
        base = adapters.base(config.reward_model or config.init_from, workdir)
        models["value"] = model_records.describe(state.value.model, tokenizer, base)
    if state.reference is not None:
        models["reference"] = model_records.describe(state.reference, tokenizer)
    return {"models": models}
