"""The precision for which programs are lowered: float32 means float32."""

import importlib
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.launching import stage
from rlhf_jax.models.presets import preset
from rlhf_jax.training import options

ROOT = Path(__file__).parents[2]
BY_DTYPE = [
    ("float32", "auto", "HIGHEST"),
    ("bfloat16", "auto", "DEFAULT"),
    ("float32", "default", "DEFAULT"),
    ("float32", "high", "HIGH"),
    ("bfloat16", "highest", "HIGHEST"),
]


def lowered() -> str:
    square = jnp.ones((2, 2))
    return jax.jit(lambda x: x @ x).lower(square).as_text()


@pytest.mark.parametrize(("dtype", "chosen", "expected"), BY_DTYPE)
@pytest.mark.parametrize("name", ["sft", "evaluate", "prepare_prompts"])
def test_a_stage_runs_in_the_precision_of_its_config(
    name, dtype, chosen, expected, monkeypatch
):
    """The last stage has no mesh."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.dtype, config.matmul_precision = dtype, chosen
    seen = []
    module = importlib.import_module(f"rlhf_jax.stages.{name}")
    monkeypatch.setattr(module, "run", lambda *_: seen.append(lowered()))
    monkeypatch.setattr(stage, "is_first", lambda: False)
    stage.run_stage(config, "nowhere")
    assert f"precision = [{expected}, {expected}]" in seen[0]
    assert "precision = [HIGHEST, HIGHEST]" in lowered()  # that of these tests


@pytest.mark.parametrize("name", [p.stem for p in (ROOT / "configs").glob("*.py")])
def test_every_config_of_a_computation_has_a_precision(name):
    module = importlib.import_module(f"configs.{name}")
    if not hasattr(module, "get_config"):
        return
    for key, value in options.leaves(module.get_config(), "config"):
        if key.endswith(".dtype"):
            section = key.removesuffix("dtype")
            assert f"{section}matmul_precision" in dict(
                options.leaves(module.get_config(), "config")
            )
            assert value in options.CHOICES["dtype"]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")]
)
def test_an_answer_in_the_terminal_has_the_precision_of_its_dtype(
    dtype, expected, monkeypatch
):
    module = runpy.run_path(str(ROOT / "launch" / "generate.py"))
    main, seen = module["main"], []
    fields = {"config": preset("micro", dtype=dtype), "for_decoding": lambda self: self}
    model = type("Model", (), fields)()
    own = main.__globals__
    flags = {"chat": False, "prompt": "", "checkpoint": "x", "dtype": None, "seed": 0}
    flags |= {"max_new_tokens": 1, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    monkeypatch.setitem(own, "FLAGS", type("Flags", (), flags))
    monkeypatch.setitem(own, "open_checkpoint", lambda *_: (model, None))
    monkeypatch.setitem(own, "sampling_with", lambda *_, **__: None)
    monkeypatch.setitem(own, "speak", lambda _: seen.append(lowered()))
    main([])
    assert f"precision = [{expected}, {expected}]" in seen[0]
