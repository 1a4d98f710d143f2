"""Algorithms: the options, experience, loss and train step of each, as pure functions.

There is no registry: `find("dpo")` imports `rlhf_jax/algorithms/dpo.py`, and any file
added to this folder is importable in the same way. Each module has these names:

    Batch       the type of batch (rlhf_jax/batches.py) that `train_step` learns from
    Hyper       the options, a frozen dataclass with `from_config(config, num_tokens)`
    train_step  maps a state and a batch to the next state and metrics
    batch_loss  maps a model and a whole batch to the loss and metrics (takes `hyper=`)
"""

import importlib
import pkgutil
from types import ModuleType


def find(stage: str) -> ModuleType:
    """Return the module of a stage's algorithm.

    Raises:
        ValueError: the stage trains nothing; the message lists the stages that train.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if stage not in names:
        raise ValueError(f"Stage {stage!r} trains nothing; {', '.join(names)} do.")
    return importlib.import_module(f"{__name__}.{stage}")
