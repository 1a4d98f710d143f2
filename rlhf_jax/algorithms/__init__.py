"""The algorithms: options, experience, loss and train step of each, pure functions.

Nothing is registered: `find("dpo")` is the module `rlhf_jax/algorithms/dpo.py`, and a
file beside it is found likewise. Each module has these names:

    Batch       the kind of batch (rlhf_jax/batches.py) that `train_step` learns from
    Hyper       the options, a frozen dataclass with `from_config(config, num_tokens)`
    train_step  state and batch to the next state and metrics
    batch_loss  model and whole batch to the loss and metrics, with `hyper=`
"""

import importlib
import pkgutil
from types import ModuleType


def find(stage: str) -> ModuleType:
    """The module of a stage's algorithm.

    Raises:
        ValueError: the stage trains nothing; those that do are listed.
    """
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if stage not in known:
        raise ValueError(f"Stage {stage!r} trains nothing; {', '.join(known)} do.")
    return importlib.import_module(f"{__name__}.{stage}")
