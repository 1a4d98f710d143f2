"""Write docs/configuration.md from configs/*.py: every key, its defaults, its comment.

python docs/make_configuration.py

A key's reason is the comment on its line, or the comment lines right above it.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # for configs/, which is no part of the package

from configs import common, ppo  # noqa: E402
from rlhf_jax.training import config_comments, options  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
COMMON = ROOT / "configs" / "common.py"
# One of the published sizes stands for all of them.
PRESETS = {"tiny": "tiny", "hh": "hh", "chatglm3_6b": "published"}
OTHER_PRESETS = {"paper": ("quick", "full"), "pipeline": ("tiny", "hh")}
OTHER_PRESETS |= dict.fromkeys(("prepare_prompts", "prepare_comparisons"), ("default",))

# The functions of configs/common.py whose keys are shared by configs: their name on the
# page, and the prefix of their keys.
SHARED = {
    "stage": ("every stage", ""),
    "with_model": ("stages that start from a policy", ""),
    "with_training": ("stages that train", ""),
    "lora": ("adapters", "lora."),
    "optimizer": ("the optimizer", "optimizer."),
    "data": ("the data", "data."),
    "testbed": ("the testbed", "data.testbed."),
    "annotators": ("simulated annotators", "data.annotators."),
    "chat_service": ("a chat service that judges", "service."),
    "with_rewards": ("stages that score responses", ""),
    "reward_options": ("options of built-in rewards", "reward_options."),
}
INTRO = """# Configuration

Made from `configs/*.py` by `docs/make_configuration.py`; do not edit.

A config is a file and a preset, and every key can be set on the command line. Words
need no quotes, tuples do:

```
python launch/train.py --config=configs/sft.py:tiny --workdir=runs/short \\
    --config.epochs=1 --config.optimizer.learning_rate=1e-3 --config.mesh='(1, 1, 1)'
```

An unknown key is refused, and the error names the nearest existing one; a value out of
its bounds is refused before anything is read. The resolved config of a run is its
`config.json`.

`tiny` is the testbed on a CPU; `hh` is real comparisons with a model of the same size;
"published" are the published sizes with the paper's settings, which differ only in
`model`: {published}. Where presets differ, the default of `tiny` comes first.
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the whole page as Markdown."""
    published = ", ".join(f"`{name}`" for name in common.PUBLISHED)
    parts = [INTRO.format(published=published)]
    files = sorted(p.stem for p in (ROOT / "configs").glob("*.py"))
    files.remove("common")
    parts += [config_section(name) for name in files]
    parts += [shared_section(name) for name in SHARED]
    return "\n".join(parts)


def config_section(name: str) -> str:
    """Return the section of a config file: links to its shared keys, and a table of its
    other keys."""
    module = importlib.import_module(f"configs.{name}")
    presets = OTHER_PRESETS.get(name, tuple(PRESETS))
    flat = {preset: dict(leaves(module.get_config(preset))) for preset in presets}
    config = module.get_config(presets[0])
    own = comments(ROOT / "configs" / f"{name}.py")
    rows = {key: reason for key, reason in own.items() if key in flat[presets[0]]}
    shared = [
        f"[{words}](#{_anchor(words)})"
        for function, (words, _) in SHARED.items()
        if function in ("stage", "with_model", "with_training", "with_rewards")
        and set(comments(COMMON, function)) - {"data"} <= set(config)
    ]
    for part in (key for key, value in config.items() if isinstance(value, ConfigDict)):
        anchor, base, reasons = _part(name, part, presets[0])
        reason = own.get(part, "").rstrip(".")
        shared.append(f"[`{part}.*`](#{anchor})" + f" ({reason})" * bool(reason))
        for key, value in leaves(config[part]):
            if key not in base or base[key] != value:
                full = f"{part}.{key}"
                rows[full] = own.get(full) or reasons.get(key.rpartition(".")[2], "")
    lines = [f"## {name}", "", _docstring(module), ""]
    if shared:
        lines += [f"Besides: {', '.join(shared)}.", ""]
    return "\n".join([*lines, table(rows, flat), ""])


def shared_section(function: str) -> str:
    """Return the section of a function of configs/common.py: a table of its keys."""
    words, prefix = SHARED[function]
    flat = {}
    for preset in PRESETS:
        config = ppo.get_config(preset)
        config.optimizer = common.optimizer(config.optimizer.learning_rate)
        config.service = common.chat_service(max_tokens=0)
        flat[preset] = dict(leaves(config))
        given = ("stage", "optimizer.learning_rate", "service.max_tokens")
        flat[preset] |= dict.fromkeys(given, "set by each file")
    rows = {
        prefix + key: reason
        for key, reason in comments(COMMON, function).items()
        if prefix + key in flat["tiny"]
    }
    return "\n".join([f"## {words.capitalize()}", "", table(rows, flat), ""])


def table(rows: dict[str, str], flat: dict[str, dict]) -> str:
    """Return a table of keys with their values by preset, bounds and comments."""
    lines = ["| key | default | must be | what it is |", "|---|---|---|---|"]
    lines += [
        f"| `{key}` | {_default(key, flat)} | {_bound(key)} | {reason} |"
        for key, reason in rows.items()
    ]
    return "\n".join(lines)


def comments(path: Path, function: str = "") -> dict[str, str]:
    """Return the comment of every `c.KEY = ...`, without its bounds, for a table."""
    found = config_comments.comments(path, function)
    return {
        k: config_comments.split(x)[0].replace("|", "\\|") for k, x in found.items()
    }


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield (key with dots, value) for all values of a config."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _part(name: str, key: str, preset: str) -> tuple[str, dict, dict[str, str]]:
    """Return the anchor of the section that describes a part of a config, the values of
    the part there, and its comments."""
    own = ROOT / "configs" / f"{key}.py"
    if own.exists():
        base = importlib.import_module(f"configs.{key}").get_config(preset)
        return key, dict(leaves(base)), comments(own)
    calls = {
        "data": ("data", lambda: common.data(preset)),
        "lora": ("lora", lambda: common.lora(common.dtype(preset))),
        "optimizer": ("optimizer", lambda: common.optimizer(0.0)),
        "value_optimizer": ("optimizer", lambda: common.optimizer(0.0)),
        "service": ("chat_service", lambda: common.chat_service(max_tokens=0)),
        "judge": ("chat_service", lambda: common.chat_service(max_tokens=0)),
        "reward_judge": ("chat_service", lambda: common.chat_service(max_tokens=0)),
        "reward_options": ("reward_options", common.reward_options),
    }
    if key not in calls:  # a function of its own file
        reasons = comments(ROOT / "configs" / f"{name}.py", key)
        return name, {}, reasons
    function, make = calls[key]
    reasons = comments(COMMON, function)
    return _anchor(SHARED[function][0]), dict(leaves(make())), reasons


def _docstring(module) -> str:
    return module.__doc__.partition("\n\nRun:")[0].strip()


def _anchor(words: str) -> str:
    return words.replace(" ", "-")


def _default(key: str, flat: dict[str, dict]) -> str:
    """Return the value of the first preset, and the differing values of others."""
    values = {preset: f[key] for preset, f in flat.items()}
    first, *others = values
    texts = [_text(values[first])]
    texts += [
        f"{PRESETS.get(preset, preset)} {_text(values[preset])}"
        for preset in others
        if values[preset] != values[first]
    ]
    return "; ".join(texts)


def _text(value) -> str:
    return '`""`' if value == "" else f"`{value}`"


def _bound(key: str) -> str:
    name = key.rpartition(".")[2]
    if name in options.CHOICES:
        return ", ".join(options.CHOICES[name])
    interval = config_comments.intervals().get(name)
    return "" if interval is None else interval.words


if __name__ == "__main__":
    main()
