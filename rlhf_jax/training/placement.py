"""The places of models and moments that are not always in use."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from rlhf_jax.models.adapters import merged
from rlhf_jax.models.quantise import quantise
from rlhf_jax.parallel.sharding import creator, to_memory
from rlhf_jax.training.optimizers import Optimizer
from rlhf_jax.training.state import TrainState, first_state

# The sampler's copy of the policy, by `rollout_param_dtype`.
COPIES: dict[str, Callable | None] = {
    "same": None,
    "merged": merged,
    "int8": lambda policy: quantise(merged(policy)),
}


class Memory:
    """Placement of the models: on the device, or in the host's memory while they are
    not in use (`offload_frozen`, `offload_moments`); and the sampler's copy of the
    policy (`rollout_param_dtype`).

    Args:
        frozen: a tree of the models that are not trained.
    """

    def __init__(self, config: ConfigDict, frozen: Any):
        self._frozen_rests = "pinned_host" if config.offload_frozen else "device"
        self._moments_rest = "pinned_host" if config.offload_moments else "device"
        self._frozen = to_memory(frozen, self._frozen_rests)
        self._copy = COPIES[config.rollout_param_dtype]
        # The conversion, compiled for the first policy.
        self._make_copy: Callable | None = None

    def first(self, model: Any, optimizer: Optimizer) -> TrainState:
        """Return the first state of a trained model, which takes over the model's
        memory, with the moments at rest."""
        state = first_state(model, optimizer)
        moments = to_memory(state.opt_state, self._moments_rest)
        return dataclasses.replace(state, opt_state=moments)

    def frozen(self) -> Any:
        """Return the frozen models, on the device."""
        return to_memory(self._frozen, "device")

    def sampler(self, policy: Any) -> Any:
        """Return the model that answers prompts: the policy, or its copy."""
        if self._copy is None:
            return policy
        if self._make_copy is None:
            self._make_copy = creator(self._copy, policy)
        return self._make_copy(policy)

    def at_work(self, state: Any) -> Any:
        """Move the whole state to the device, as the update needs it."""
        return with_opt_states(state, lambda moments: to_memory(moments, "device"))

    def at_rest(self, state: Any) -> Any:
        """Move the optimizers' moments to their place between updates."""
        rest = self._moments_rest
        return with_opt_states(state, lambda moments: to_memory(moments, rest))


def with_opt_states(state: Any, change: Callable[[dict], dict]) -> Any:
    """Return a dataclass of states with `change` applied to the optimizer state of each
    `TrainState` in it."""
    changed = {
        name: dataclasses.replace(trained, opt_state=change(trained.opt_state))
        for name, trained in vars(state).items()
        if isinstance(trained, TrainState)
    }
    return dataclasses.replace(state, **changed)
