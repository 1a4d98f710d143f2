"""Every config is made, knows its presets, and has no option that nothing reads."""

import ast
import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common

ROOT = Path(__file__).parent.parent
PREPARATIONS = ("prepare_prompts", "prepare_comparisons")  # with one preset
STAGES = sorted(
    path.stem
    for path in (ROOT / "rlhf_jax" / "stages").glob("*.py")
    if path.stem not in ("__init__", *PREPARATIONS)
)
EVERY = [(stage, preset) for stage in STAGES for preset in common.STAGE_PRESETS]
EVERY += [("iterative_dpo", preset) for preset in common.STAGE_PRESETS]
EVERY += [("pipeline", "tiny"), ("pipeline", "hh")]


# Parts of the variants' folder that are no variant.
HELPERS = ("base", "rewards", "study")
VARIANTS = sorted(
    path.stem
    for path in (ROOT / "configs" / "variants").glob("*.py")
    if path.stem not in HELPERS
)
EVERY += [
    (f"variants.{name}", preset)
    for name in VARIANTS
    for preset in ("tiny", "chatglm3_6b")
]


def make(name: str, preset: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(preset)


@pytest.mark.parametrize(("name", "preset"), EVERY)
def test_values_can_be_overridden_from_the_command_line(name, preset):
    def check(config, prefix):
        for key, value in config.items():
            if isinstance(value, ConfigDict):
                check(value, f"{prefix}.{key}")
            else:  # a flag keeps the type of the default: None and lists have none
                kind = bool | int | float | str | tuple
                assert isinstance(value, kind), f"{prefix}.{key}"

    check(make(name, preset), name)


@pytest.mark.parametrize("name", [*STAGES, "iterative_dpo", "pipeline"])
def test_an_unknown_preset_lists_the_known(name):
    with pytest.raises(ValueError, match=rf"configs/{name}.py has no preset 'x'.*tiny"):
        make(name, "x")


PUBLISHED_VARIANTS = {
    "dapo": "2503.14476",
    "dr_grpo": "2503.20783",
    "gspo": "2507.18071",
    "cispo": "2506.13585",
    "reinforce_pp": "2501.03262",
    "rloo": "2402.14740",
    "remax": "2310.10505",
    "grpo": "2402.03300",
    "kto": "2402.01306",
    "orpo": "2403.07691",
    "online_dpo": "2402.04792",
}


@pytest.mark.parametrize("name", PUBLISHED_VARIANTS)
def test_a_variant_says_its_paper_and_its_command(name):
    text = importlib.import_module(f"configs.variants.{name}").__doc__
    assert PUBLISHED_VARIANTS[name] in text
    assert f"--config=configs/variants/{name}.py:tiny" in text


@pytest.mark.parametrize("name", [x for x in VARIANTS if x != "online_dpo"])
def test_the_options_of_a_variant_do_not_contradict_each_other(name):
    config = make(f"variants.{name}", "tiny")
    stage = importlib.import_module(f"rlhf_jax.stages.{config.stage}")
    stage.check_options(config)


def attributes_read(path: Path) -> set[str]:
    """Every `config.NAME` and `config["NAME"]` in a file, `config.data.x` included."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_is_read(stage):
    """A dead option is a lie: whoever sets it believes that it does something."""
    package = ROOT / "rlhf_jax"
    source = attributes_read(package / "stages" / f"{stage}.py")
    source |= attributes_read(package / "training" / "workdir.py")  # config.seed
    if "init_from" in make(stage, "tiny"):
        source |= attributes_read(package / "training" / "weights.py")
    if "offload_frozen" in make(stage, "tiny"):
        source |= attributes_read(package / "training" / "placement.py")
    algorithm = package / "algorithms" / f"{stage}.py"
    if algorithm.is_file():
        source |= attributes_read(algorithm)
    source |= set().union(*map(attributes_read, (package / stage).glob("*.py")))
    optimizer = attributes_read(package / "training" / "optimizers.py")
    data = attributes_read(package / "data" / "sources.py")
    config = make(stage, "tiny")
    if "rewards" in config:
        rewards = set().union(*map(attributes_read, (package / "rewards").glob("*.py")))
        assert set(config.reward_options) <= rewards
        source |= rewards
    # Read by rlhf_jax/launching/stage.py, and by weights.fingerprint.
    launcher = {"stage", "mesh", "matmul_precision", "seed"}
    for key, value in config.items():
        assert key in source | launcher, f"configs/{stage}.py: nothing reads {key}."
        if key.endswith("optimizer"):
            assert set(value) <= optimizer
    assert set(config.get("data", ())) <= data


@pytest.mark.parametrize("stage", STAGES)
def test_options_that_are_read_exist(stage):
    """`config.NAME` in the stage names a field of its config."""
    tree = ast.parse((ROOT / "rlhf_jax" / "stages" / f"{stage}.py").read_text())
    config = make(stage, "tiny")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "config"
        ):
            assert node.attr in config, f"{stage}.py reads config.{node.attr}"


def test_the_testbeds_options_are_the_dataclasses_fields():
    from rlhf_jax.data.testbed.annotators import AnnotatorConfig
    from rlhf_jax.data.testbed.pools import TestbedConfig

    data = common.data("tiny")
    assert set(data.testbed) == set(TestbedConfig.__dataclass_fields__)
    assert set(data.annotators) <= set(AnnotatorConfig.__dataclass_fields__)
    TestbedConfig(**data.testbed)
    AnnotatorConfig(**data.annotators)
