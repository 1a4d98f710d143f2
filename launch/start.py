"""What every launch script does first: quiet logs, a compilation cache, clear errors."""

import sys
from pathlib import Path

import jax
from absl import logging
from rlhf_jax.data.records import RecordError
from rlhf_jax.training.checkpoints import DiskFullError
from rlhf_jax.training.metrics import NonFiniteError

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    RecordError,
    DiskFullError,
    NonFiniteError,
)


def no_positional(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"Unknown arguments {argv[1:]}: flags start with --.")


def run(app, main) -> None:
    """Run `main` under absl; user errors are printed without a traceback (-v 1 shows
    it)."""
    logging.set_verbosity(logging.INFO)
    for noisy in ("jax", "orbax", "tensorstore", "asyncio"):
        _quiet(noisy)
    cache = Path.home() / ".cache" / "rlhf_jax" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

    def guarded(argv):
        try:
            main(argv)
        except USER_ERRORS as error:
            if logging.vlog_is_on(1):
                raise
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded)


def _quiet(name: str) -> None:
    import logging as standard

    standard.getLogger(name).setLevel(standard.WARNING)
