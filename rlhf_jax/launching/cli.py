"""The entry point of every command: flags, logs, the compile cache, clear errors."""

import contextlib
import difflib
import importlib.util
import itertools
import logging as standard_logging
import os
import pkgutil
import re
import runpy
import shutil
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rlhf_jax import __version__
from rlhf_jax.files import disk_trouble
from rlhf_jax.launching import processes
from rlhf_jax.launching.closing import WIDTH
from rlhf_jax.launching.device_groups import take_memory
from rlhf_jax.training import lock, preemption
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.checkpoints import SaveError, finish_saves
from rlhf_jax.training.metrics import NonFiniteError

ROOT = Path(__file__).parents[2]
# transformers would advise installing torch; the project uses only its tokenizers.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Errors whose message suffices for the user: of bad input, of files (missing, not
# allowed, no space left) and of a run that cannot continue.
OTHERS_SECONDS = 60  # that a failing process has for a save with the others
USER_ERRORS = (ValueError, OSError, NonFiniteError)


def run(main: Callable[[ConfigDict, str], None]) -> None:
    """Call `main(config, workdir)` with the values of --config and --workdir, in one or
    more processes.

    A user's mistake ends the command with a message and status 1; --verbosity=1 adds
    the traceback. SIGTERM and Ctrl-C end the command as described in `preemption`.
    """
    config = config_flags.DEFINE_config_file("config", None, "Config, FILE.py:PRESET.")
    workdir = flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.mark_flags_as_required(["config", "workdir"])
    processes.define_flags()

    def connected(argv):
        refuse_arguments(argv[1:])
        take_memory(os.environ)
        warn_of_unused_gpu()
        processes.connect()
        if jax.distributed.is_initialized():
            preemption.join_others()
        keep_freed_memory()
        use_compile_cache()
        main(config.value, str(Path(workdir.value).absolute()))

    set_up_logs()
    with (
        processes.failing_at_once(),
        leaving_at_once(),
        clear_errors(),
        saves_finished(),
        processes.missing_no_one(),
    ):
        app.run(connected, flags_parser=parse)


def command(
    main: Callable[[list[str]], None], *, verbosity: int = logging.INFO
) -> None:
    """Parse the flags and call `main` with the other arguments, in a command of one
    process. Errors end the command as in `run`.

    Args:
        verbosity: the level from which on log lines are shown, without --verbosity.
    """

    def prepared(argv):
        take_memory(os.environ)
        warn_of_unused_gpu()
        use_compile_cache()
        main(argv[1:])

    set_up_logs(verbosity)
    with leaving_at_once(), clear_errors(), saves_finished():
        app.run(prepared, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """Check the flags of a config and parse all flags; --help and --version exit."""
    given = {arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")}
    if given & {"version"}:
        print(f"rlhf_jax {__version__}, jax {jax.__version__}")
        sys.exit(0)
    if given & {"help", "h", "?", "helpshort"}:
        print(help_text(argv))
        sys.exit(0)
    check_config_flags(argv)
    return app.parse_flags_with_usage(argv)


def help_text(argv: list[str]) -> str:
    """Return the help of a command: its docstring, its flags, the presets of its
    configs and the page of their keys; with --config among the arguments, the keys
    too."""
    doc = sys.modules["__main__"].__doc__ or ""
    own = (argv[0], __name__, processes.__name__)
    modules = flags.FLAGS.flags_by_module_dict()
    doc = re.sub(r"(?<=\S) {4,}", r" \\\n    ", doc)  # a docstring joins such lines
    lines = [_paragraphs(doc.strip()), "", "Flags:"]
    lines += [_flag_line(flag) for module in own for flag in modules.get(module, ())]
    lines += [
        "  --verbosity: -1 shows warnings alone, 1 details and tracebacks. (0)",
        "  --version: Print the versions and end.",
    ]
    files = sorted(set(re.findall(r"configs/\w+\.py", doc)))
    if not files:
        return "\n".join(lines)
    lines += ["", "Configs and their presets:"]
    lines += [
        _item(f"  {file}: {', '.join(presets_of(ROOT / file))}") for file in files
    ]
    given = [arg.partition("config=")[2] for arg in argv if "-config=" in arg]
    for place in given:
        keys = read_config_file(place).to_dict()
        lines += ["", f"Keys of {place}:", *_key_lines(keys, "--config")]
    if not given:
        lines += ["", "Add --config=FILE.py:PRESET to list the keys of a config."]
    lines += ["What every key does: docs/configuration.md"]
    return "\n".join(lines)


def presets_of(path: Path) -> tuple[str, ...]:
    """Return the presets of a config file."""
    module = runpy.run_path(str(path))
    return module.get("PRESETS") or module["common"].STAGE_PRESETS


def _flag_line(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    text = f"  --{flag.name}: {flag.help}"
    if choices:
        text += f" One of {', '.join(choices)}."
    if flag.default not in (None, "", []):
        text += f" ({flag.default})"
    return _item(text)


def _item(text: str) -> str:
    """Fold an entry of a list to the width of a terminal."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent="      ", break_on_hyphens=False
    )


def _paragraphs(doc: str) -> str:
    """Fold the paragraphs of a docstring to the width of a terminal; leave alone those
    with indented lines, which are commands and lists."""
    return "\n\n".join(
        part if "\n " in f"\n{part}" else textwrap.fill(part, WIDTH)
        for part in doc.split("\n\n")
    )


def _key_lines(values: dict, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _key_lines(value, f"{prefix}.{key}")
        else:
            yield f"  {prefix}.{key}={value}"


def refuse_arguments(arguments: list[str]) -> None:
    """Raise app.UsageError for an argument that is not a flag."""
    if arguments:
        raise app.UsageError(f"unknown arguments {arguments}: flags start with --")


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Exit at once after the message of an error, without waiting for the threads of
    libraries, which would go on printing."""
    try:
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        if not status or jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        elif not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """End the program with a message and status 1 after a user's mistake or an error of
    the disk, with status 130 after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(preemption.AT_ONCE)
    except Exception as error:
        trouble = disk_trouble(error)
        is_known = isinstance(error, USER_ERRORS) or trouble is not None
        is_full = isinstance(error, jax.errors.JaxRuntimeError)
        is_full &= "RESOURCE_EXHAUSTED" in str(error)
        if is_full:
            error, is_known = MemoryError(memory_trouble(str(error))), True
        if not is_known or logging.get_verbosity() >= logging.DEBUG:
            raise
        text = f"{type(error).__name__}: {error}"
        if trouble is not None and not isinstance(error, SaveError):
            what, cure = trouble
            text = f"{what}: {error}. {cure.capitalize()} and start the same command"
            text += " again: the run resumes from the last checkpoint."
        notes = getattr(error, "__notes__", [])
        # jax adds one about the traceback, which is not shown.
        notes = [note for note in notes if "JAX_TRACEBACK_FILTERING" not in note]
        print("\n".join([text, *notes]), file=sys.stderr)
        sys.exit(1)


def memory_trouble(message: str) -> str:
    """Return one line on a program that found too little memory: what it wanted, what
    the device has, and what to do.

    Args:
        message: the compiler's or the allocator's, of many lines.
    """
    first = message.partition("\n")[0].removeprefix("RESOURCE_EXHAUSTED: ")
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    has = f" {device.device_kind} gives jax {limit / 2**30:.1f} GiB." if limit else ""
    return (
        f"{first[:300].rstrip('. ')}.{has} launch/plan.py shows what each program "
        "takes. Set more minibatches or microbatches, or see docs/memory_planning.md."
    )


@contextlib.contextmanager
def saves_finished() -> Iterator[None]:
    """Wait for all saves and release all locks, however the block ends. A signal is
    reported in one line, with the checkpoint from which the run resumes."""
    preemption.tell()
    try:
        yield
    except BaseException as error:
        newest: list[str] = []
        finishing = threading.Thread(
            target=lambda: newest.extend(finish_saves()), daemon=True
        )
        by_signal = isinstance(error, preemption.Preempted)
        alone = by_signal or not jax.distributed.is_initialized()
        with preemption.leaving():
            finishing.start()
            finishing.join(None if alone else OTHERS_SECONDS)
            lock.release_all()
        if by_signal:
            if newest and newest[-1] not in error.where:
                error.where += f", behind {newest[-1]}"
            logging.warning("%s", error)
        raise


def set_up_logs(verbosity: int = logging.INFO) -> None:
    """Show our log lines from a level on, and the warnings of libraries."""
    logging.set_verbosity(verbosity)
    handler = logging.get_absl_handler()
    handler.addFilter(_is_ours)
    handler.setFormatter(_Line(datefmt="%H:%M:%S"))


def warn_of_unused_gpu(dev: Path = Path("/dev")) -> None:
    """Say in one line that this machine has an NVIDIA GPU that jax does not see, since
    the extra [cuda] is not installed. JAX_PLATFORMS says that this is intended."""
    has_gpu = any(dev.glob("nvidia[0-9]*")) or shutil.which("nvidia-smi")
    if has_gpu and not has_cuda() and not os.environ.get("JAX_PLATFORMS"):
        logging.warning(
            "This machine has an NVIDIA GPU, but jax sees only the CPU: pip install "
            "-e '.[cuda]', or set JAX_PLATFORMS=cpu to stay on the CPU."
        )


def has_cuda() -> bool:
    """Return True if jax has a plugin for CUDA; no device is touched."""
    names = [entry.name for entry in entry_points(group="jax_plugins")]
    package = importlib.util.find_spec("jax_plugins")
    if package is not None:
        folders = package.submodule_search_locations
        names += [module.name for module in pkgutil.iter_modules(folders)]
    return any("cuda" in name for name in names)


def use_compile_cache() -> None:
    """Cache compiled programs on disk, for a fast start of the next run."""
    cache = Path.home() / ".cache" / "rlhf_jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def check_config_flags(argv: list[str]) -> None:
    """Refuse a config file, preset or key that does not exist.

    Raises:
        FileNotFoundError: --config does not name a file.
        ValueError: the file is not a config; a preset or key does not exist, and the
            existing ones are listed; or a key holds other keys, which are listed.
    """
    values = {}
    for arg, after in itertools.pairwise([*argv[1:], ""]):
        if arg.startswith("-"):  # --name=value, or --name value
            name, equals, value = arg.lstrip("-").partition("=")
            values[name] = value if equals else after
    if "config" not in values:
        return  # absl says that the flag is required
    config = read_config_file(values["config"])
    for name in values:
        flag = name.removeprefix("no")  # --noconfig.fused is --config.fused=False
        if not flag.startswith("config."):
            continue
        if flag == "config.stage":
            raise ValueError(
                "--config.stage: each stage has a config of its own, name its file: "
                "--config=configs/STAGE.py."
            )
        node, done = config, "config"
        for key in flag.split(".")[1:]:
            if not isinstance(node, ConfigDict) or key not in node:
                keys = list(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, keys, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"--{flag}: {done} has no key {key!r}.{hint} It has: "
                    f"{', '.join(keys)}."
                )
            node, done = node[key], f"{done}.{key}"
        if isinstance(node, ConfigDict):
            keys = ", ".join(node)
            raise ValueError(f"--{flag}: it holds other keys, set these: {keys}.")


def read_config_file(place: str) -> ConfigDict:
    """Return the config of "FILE.py" or "FILE.py:PRESET".

    Raises:
        FileNotFoundError, ValueError: see `check_config_flags`.
    """
    path, _, preset = place.partition(":")
    if not Path(path).is_file():
        files = sorted(p.name for p in (ROOT / "configs").glob("*.py"))
        raise FileNotFoundError(
            f"--config: there is no file {path}. In configs/: {', '.join(files)}."
        )
    try:
        module = runpy.run_path(path)
    except SyntaxError as error:
        raise ValueError(f"--config: {path} is not Python: {error}.") from None
    if "get_config" not in module:
        raise ValueError(f"--config: {path} has no function get_config.")
    return module["get_config"](preset) if preset else module["get_config"]()


class _Line(standard_logging.Formatter):
    """A formatter of log lines as "03:12:05 message". Warnings and errors begin with
    their level; --verbosity=1 adds the file and the line."""

    def formatMessage(self, record: standard_logging.LogRecord) -> str:
        parts = [self.formatTime(record, self.datefmt)]
        if logging.get_verbosity() >= logging.DEBUG:
            parts.append(f"{record.filename}:{record.lineno}")
        if record.levelno != standard_logging.INFO:
            parts.append(f"{record.levelname.lower()}:")
        return " ".join([*parts, record.message])


def _is_ours(record: standard_logging.LogRecord) -> bool:
    """A filter that shows only the warnings of libraries, which log through absl
    too."""
    ours = "rlhf_jax" in record.pathname or "launch" in record.pathname
    if not ours:
        record.exc_info = None  # our own message reports the error once
    return ours or record.levelno >= standard_logging.WARNING
