"""The end of a run whose policy moved too far from its reference."""

import shutil
from pathlib import Path
from typing import NoReturn

import jax

from rlhf_jax.ppo.state import to_checkpoint
from rlhf_jax.training import weights
from rlhf_jax.training.checkpoints import Checkpoints

ABOVE_CEILING = "above_kl_ceiling"  # folder of the policy that stopped its run


class KLCeilingError(ValueError):
    """The policy moved farther from its reference than `kl_ceiling` allows."""


def stop_above_ceiling(config, workdir, checkpoints, step, state, meta, kl) -> NoReturn:
    """End a run whose policy is above the ceiling. The policy is saved for study, apart
    from the run's checkpoints; the newest of the checkpoints is below the ceiling.

    Raises:
        KLCeilingError: always; names the step, the KL (nats per response) and what to
            change.
    """
    message = (
        f"Step {step} of {workdir}: objective/kl {kl:.1f} nats a response is above "
        f"kl_ceiling {config.kl_ceiling:.1f}, with kl_coef {state.kl_coef:.3g}."
    )
    if step == 0:
        raise KLCeilingError(
            f"{message} The policy has had no update yet: it starts too far from its "
            f"reference, {weights.fingerprint(config.reference or config.init_from)}."
        )
    study = Path(workdir) / ABOVE_CEILING
    if jax.process_index() == 0:
        shutil.rmtree(study, ignore_errors=True)
        study.mkdir()
        shutil.copy(workdir / "config.json", study)
        shutil.copytree(workdir / "tokenizer", study / "tokenizer")
    above = Checkpoints(study, keep=1)
    above.save(step, to_checkpoint(state), meta)
    above.close()
    checkpoints.delete_from(step)
    below = checkpoints.latest_step()
    checkpoints.close()
    raise KLCeilingError(
        f"{message} Raise kl_coef or lower optimizer.learning_rate, in another "
        f"--workdir. The newest checkpoint below the ceiling is of step {below}; "
        f"this policy is kept in {study}."
    )
