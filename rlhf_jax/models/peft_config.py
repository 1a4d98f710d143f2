"""The adapter_config.json of the library PEFT, as far as its adapters are computed
here: LoRA of linear maps. Every other setting is refused by its name."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

# Keys that are read, or that change nothing once an adapter is trained. Each other key
# must have a value that asks for nothing: null, false, or empty.
_KNOWN = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("inference_mode", "runtime_config", "qalora_group_size", "megatron_core"),
    *("lora_dropout", "eva_config"),
}
Check = Callable[[Any], bool]
_VALUES: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "task_type": (None, "CAUSAL_LM"),
    "bias": ("none",),
    # Other ways to draw the first adapter change the base too.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}


class Settings(NamedTuple):
    """The product that an adapter computes, and the modules that it is in."""

    rank: int
    alpha: float
    rslora: bool
    ranks: dict[str, int]  # pattern of modules -> their rank
    alphas: dict[str, float]
    targets: list[str] | str  # ends of modules' names, or a pattern of whole names
    excluded: list[str] | str
    layers: list[int]  # the layers with an adapter; [] is all
    layer_names: list[str]  # patterns of what precedes a layer's number; [] is anything

    def rank_of(self, module: str) -> int:
        return _by_pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of a module's product B A."""
        rank = self.rank_of(module)
        alpha = _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def chosen(self, modules: Iterable[str]) -> list[str]:
        """Return those of the modules that have an adapter, by PEFT's rules.

        Args:
            modules: all linear maps of the model's blocks.

        Raises:
            ValueError: a target is none of them.
        """
        modules = list(modules)
        if self.targets == "all-linear":
            return modules
        for target in _each(self.targets):
            if not any(_is_named([target], self.targets, x) for x in modules):
                kinds = ", ".join(sorted({x.rpartition(".")[2] for x in modules}))
                raise ValueError(
                    f"target_modules: {target!r} is no linear map of the base's "
                    f"blocks; there are: {kinds}."
                )
        chosen = [
            x
            for x in modules
            if _is_named(_each(self.targets), self.targets, x)
            and not _is_named(_each(self.excluded), self.excluded, x)
            and self._has_layer(x)
        ]
        if not chosen:
            raise ValueError(
                "target_modules, exclude_modules and layers_to_transform leave no "
                "linear map of the base's blocks."
            )
        return chosen

    def _has_layer(self, module: str) -> bool:
        if not self.layers or isinstance(self.targets, str):
            return True  # beside a pattern PEFT ignores the layers
        for name in self.layer_names or [r"[^.]*"]:
            match = re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module)
            if match:
                return int(match.group(1)) in self.layers
        return False


def read_settings(fields: dict[str, Any]) -> Settings:
    """Return the settings of the fields of adapter_config.json.

    Raises:
        ValueError: a setting that is not computed here, or not of its type.
    """
    if "peft_type" not in fields:
        raise ValueError("peft_type is missing.")
    for key, value in fields.items():
        asks = key not in _KNOWN and value not in (None, False, "", [], {})
        if value not in _VALUES[key] if key in _VALUES else asks:
            raise ValueError(f"{key}={value!r} is not supported.")

    def get(key: str, default: Any, *checks: Check) -> Any:
        value = fields.get(key)
        value = default if value is None else value
        if not any(check(value) for check in checks):
            raise ValueError(f"{key}={value!r} is not of the type that PEFT writes.")
        return value

    return Settings(
        rank=get("r", 8, _is_rank),  # these two defaults are PEFT's
        alpha=get("lora_alpha", 8, _is_alpha),
        rslora=get("use_rslora", False, lambda x: isinstance(x, bool)),
        ranks=get("rank_pattern", {}, _patterns_of(_is_rank)),
        alphas=get("alpha_pattern", {}, _patterns_of(_is_alpha)),
        targets=get("target_modules", [], _list_of(_is_text), _is_regex),
        excluded=get("exclude_modules", [], _list_of(_is_text), _is_regex),
        layers=_each(get("layers_to_transform", [], _list_of(_is_layer), _is_layer)),
        layer_names=_each(get("layers_pattern", [], _list_of(_is_regex), _is_regex)),
    )


def _each(value: Any) -> list:
    return value if isinstance(value, list) else [value] if value != "" else []


def _is_named(names: list[str], kind: list[str] | str, module: str) -> bool:
    if isinstance(kind, str):
        return any(re.fullmatch(name, module) for name in names)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(values: dict, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module as in PEFT."""
    for pattern, value in values.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_rank(x: Any) -> bool:
    return type(x) is int and x > 0


def _is_alpha(x: Any) -> bool:
    return type(x) in (int, float) and 0 < x < 1e38


def _is_layer(x: Any) -> bool:
    return type(x) is int


def _is_text(x: Any) -> bool:
    return isinstance(x, str)


def _is_regex(x: Any) -> bool:
    try:
        return isinstance(x, str) and re.compile(x) is not None
    except re.error:
        return False


def _list_of(check: Check) -> Check:
    return lambda x: isinstance(x, list) and all(map(check, x))


def _patterns_of(check: Check) -> Check:
    return lambda x: (
        isinstance(x, dict)
        and all(_is_regex(key) and check(value) for key, value in x.items())
    )
