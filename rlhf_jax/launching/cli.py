"""The front door of every command: flags, quiet logs, a compile cache, clear errors."""

import contextlib
import difflib
import itertools
import logging as standard_logging
import os
import re
import runpy
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from rlhf_jax import __version__
from rlhf_jax.files import disk_trouble
from rlhf_jax.launching import processes
from rlhf_jax.training import lock, preemption
from rlhf_jax.training.allocator import keep_freed_memory
from rlhf_jax.training.checkpoints import SaveError, finish_saves
from rlhf_jax.training.metrics import NonFiniteError

ROOT = Path(__file__).parents[2]
# transformers would advise installing torch; the project uses only its tokenizers.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
# Errors whose message is all that the user needs: of bad input, of files (missing, not
# allowed, no space left) and of a run that cannot go on.
OTHERS_SECONDS = 60  # that a process which fails has for a save with the others
USER_ERRORS = (ValueError, OSError, NonFiniteError)


def run(main: Callable[[ConfigDict, str], None]) -> None:
    """Call `main(config, workdir)` with the values of --config and --workdir: a run,
    perhaps in several processes.

    A user's mistake ends with its message and status 1; --verbosity=1 adds the
    traceback. SIGTERM and Ctrl-C end it as `preemption` says.
    """
    config = config_flags.DEFINE_config_file("config", None, "Config, FILE.py:PRESET.")
    workdir = flags.DEFINE_string("workdir", None, "The run's folder.")
    flags.mark_flags_as_required(["config", "workdir"])
    processes.define_flags()

    def connected(argv):
        refuse_arguments(argv[1:])
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
    """Call `main` with the arguments that are no flags, once the flags are parsed: a
    command of one process. Errors end it as they end a `run`.

    Args:
        verbosity: from which level on log lines are shown, if --verbosity says nothing.
    """

    def prepared(argv):
        use_compile_cache()
        main(argv[1:])

    set_up_logs(verbosity)
    with leaving_at_once(), clear_errors(), saves_finished():
        app.run(prepared, flags_parser=parse)


def parse(argv: list[str]) -> list[str]:
    """Check the flags of a config, and parse all; --help and --version end here."""
    asked = {arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")}
    if asked & {"version"}:
        print(f"rlhf_jax {__version__}, jax {jax.__version__}")
        sys.exit(0)
    if asked & {"help", "h", "?", "helpshort"}:
        print(help_text(argv))
        sys.exit(0)
    check_config_flags(argv)
    return app.parse_flags_with_usage(argv)


def help_text(argv: list[str]) -> str:
    """What a command does, its flags, the presets of its configs and where their keys
    are described; the keys themselves where --config is among the arguments."""
    doc = sys.modules["__main__"].__doc__ or ""
    own = (argv[0], __name__, processes.__name__)
    modules = flags.FLAGS.flags_by_module_dict()
    doc = re.sub(r"(?<=\S) {4,}", r" \\\n    ", doc)  # a docstring joins such lines
    lines = [doc.strip(), "", "Flags:"]
    lines += [_flag_line(flag) for module in own for flag in modules.get(module, ())]
    lines += [
        "  --verbosity: -1 shows warnings alone, 1 details and tracebacks. (0)",
        "  --version: Print the versions and end.",
    ]
    known = sorted(set(re.findall(r"configs/\w+\.py", doc)))
    if not known:
        return "\n".join(lines)
    lines += ["", "Configs and their presets:"]
    lines += [f"  {file}: {', '.join(presets_of(ROOT / file))}" for file in known]
    given = [arg.partition("config=")[2] for arg in argv if "-config=" in arg]
    for place in given:
        keys = read_config_file(place).to_dict()
        lines += ["", f"Keys of {place}:", *_key_lines(keys, "--config")]
    if not given:
        lines += ["", "Add --config=FILE.py:PRESET to list the keys of a config."]
    lines += ["What every key does: docs/configuration.md"]
    return "\n".join(lines)


def presets_of(path: Path) -> tuple[str, ...]:
    """The presets that a config file takes."""
    module = runpy.run_path(str(path))
    return module.get("PRESETS") or module["common"].STAGE_PRESETS


def _flag_line(flag: flags.Flag) -> str:
    choices = getattr(flag.parser, "enum_values", None)
    text = f"  --{flag.name}: {flag.help}"
    if choices:
        text += f" One of {', '.join(choices)}."
    return text if flag.default in (None, "", []) else f"{text} ({flag.default})"


def _key_lines(values: dict, prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _key_lines(value, f"{prefix}.{key}")
        else:
            yield f"  {prefix}.{key}={value}"


def refuse_arguments(arguments: list[str]) -> None:
    """Raise app.UsageError where something on the command line is no flag."""
    if arguments:
        raise app.UsageError(f"unknown arguments {arguments}: flags start with --")


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """End a program that fails at once, behind its message: threads of libraries, which
    an ordinary end waits for and which print on, have nothing left to do."""
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
    """A user's mistake, or what a disk did not allow, ends with its message and status
    1, Ctrl-C with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(preemption.AT_ONCE)
    except Exception as error:
        trouble = disk_trouble(error)
        is_known = isinstance(error, USER_ERRORS) or trouble is not None
        if not is_known or logging.get_verbosity() >= logging.DEBUG:
            raise
        text = f"{type(error).__name__}: {error}"
        if trouble is not None and not isinstance(error, SaveError):
            what, cure = trouble
            text = f"{what}: {error}. {cure.capitalize()} and start the same command"
            text += " again: it goes on from the last checkpoint."
        notes = getattr(error, "__notes__", [])
        print("\n".join([text, *notes]), file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def saves_finished() -> Iterator[None]:
    """However the block ends, no save is under way after it, and what an error left
    locked is free. A signal is told of in one line, with where the run goes on."""
    preemption.tell()
    try:
        yield
    except BaseException as error:
        newest: list[str] = []
        finishing = threading.Thread(
            target=lambda: newest.extend(finish_saves()), daemon=True
        )
        asked = isinstance(error, preemption.Preempted)
        alone = asked or not jax.distributed.is_initialized()
        with preemption.leaving():
            finishing.start()
            finishing.join(None if alone else OTHERS_SECONDS)
            lock.release_all()
        if asked:
            if newest and newest[-1] not in error.where:
                error.where += f", behind {newest[-1]}"
            logging.warning("%s", error)
        raise


def set_up_logs(verbosity: int = logging.INFO) -> None:
    """Show our own log lines from a level on, and the warnings of libraries."""
    logging.set_verbosity(verbosity)
    handler = logging.get_absl_handler()
    handler.addFilter(_is_ours)
    handler.setFormatter(_Line(datefmt="%H:%M:%S"))


def use_compile_cache() -> None:
    """Keep compiled programs on disk: a second run starts fast."""
    cache = Path.home() / ".cache" / "rlhf_jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def check_config_flags(argv: list[str]) -> None:
    """Refuse a config file, preset or key that does not exist, in plain words.

    Raises:
        FileNotFoundError: --config names no file.
        ValueError: the file is no config; or an unknown preset or key, or one that
            holds others; the known ones are listed.
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
                known = list(node) if isinstance(node, ConfigDict) else []
                close = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"--{flag}: {done} has no key {key!r}.{hint} It has: "
                    f"{', '.join(known)}."
                )
            node, done = node[key], f"{done}.{key}"
        if isinstance(node, ConfigDict):
            known = ", ".join(node)
            raise ValueError(f"--{flag}: it holds other keys, set these: {known}.")


def read_config_file(place: str) -> ConfigDict:
    """The config of "FILE.py" or "FILE.py:PRESET"; raises as `check_config_flags`."""
    path, _, preset = place.partition(":")
    if not Path(path).is_file():
        known = sorted(p.name for p in (ROOT / "configs").glob("*.py"))
        raise FileNotFoundError(
            f"--config: there is no file {path}. In configs/: {', '.join(known)}."
        )
    try:
        module = runpy.run_path(path)
    except SyntaxError as error:
        raise ValueError(f"--config: {path} is no Python: {error}.") from None
    if "get_config" not in module:
        raise ValueError(f"--config: {path} has no function get_config.")
    return module["get_config"](preset) if preset else module["get_config"]()


class _Line(standard_logging.Formatter):
    """Writes "03:12:05 message". What is not mere information is called by its level;
    with --verbosity=1 the file and the line are named."""

    def formatMessage(self, record: standard_logging.LogRecord) -> str:
        parts = [self.formatTime(record, self.datefmt)]
        if logging.get_verbosity() >= logging.DEBUG:
            parts.append(f"{record.filename}:{record.lineno}")
        if record.levelno != standard_logging.INFO:
            parts.append(f"{record.levelname.lower()}:")
        return " ".join([*parts, record.message])


def _is_ours(record: standard_logging.LogRecord) -> bool:
    """Libraries log through absl too: of theirs, only warnings are shown."""
    ours = "rlhf_jax" in record.pathname or "launch" in record.pathname
    if not ours:
        record.exc_info = None  # what went wrong is told once, by us
    return ours or record.levelno >= standard_logging.WARNING
