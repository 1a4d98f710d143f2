"""The names, weights and files of `config.rewards`."""

import pytest

from rlhf_jax.rewards.own_file import load
from rlhf_jax.rewards.spec import Named, parse, uses_model

FILE = """
from math import sqrt as root
import os
short = lambda prompts, responses: [0.0] * len(prompts)
NUMBER = 3
def is_right(prompts, responses):
    return [1.0] * len(prompts)
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return str(path)


def test_names_weights_and_files(own):
    text = f" model=1, {own}:is_right=2.5 ,length_penalty=-1e-1"
    assert parse(text) == (
        Named("model", 1.0),
        Named("is_right", 2.5, own),
        Named("length_penalty", -0.1),
    )
    assert uses_model(text)
    assert not uses_model(f"{own}:model=1.0")
    assert parse(f"{own}:short=1.0,{own}:root=1.0")[1].place == f"{own}:root"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty.*right_number"),
        (" , ", "is empty"),
        ("model", "'model' has no weight: write model=1.0"),
        ("model=", "the weight of 'model' must be a number, not ''"),
        ("model=one", "must be a number, not 'one'"),
        ("model=nan", "must be a number, not 'nan'"),
        ("model=inf", "must be a number"),
        ("modle=1.0", "no reward 'modle'. There are: model, right_number, .*FILE.py"),
        ("=1.0", "no reward ''"),
        ("model=1,model=2", "two rewards are called 'model'"),
        ("{own}:is_right=1,{own}:is_right=2", "two rewards are called 'is_right'"),
        ("{own}:right=1", r"has no function 'right'; it has: is_right\. Write"),
        ("{own}=1", "has no function ''"),
        ("nowhere.py:f=1", "there is no file nowhere.py"),
        ("{broken}:f=1", "broken.py, line 2 is not Python"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    text, message, own, tmp_path
):
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    text = text.format(own=own, broken=tmp_path / "broken.py")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\nimport no_such_module\ndef f(): ...", r"no_such_module.*line 2"),
        ("raise SystemExit(3)\ndef f(): ...", r"SystemExit: 3.*line 1"),
        ("f = 3", "f is not a function"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_its_line(
    content, message, tmp_path
):
    path = tmp_path / "own.py"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load(str(path), "f")
