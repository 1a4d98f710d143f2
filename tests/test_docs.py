"""The documentation is true: its commands are understood, its tables complete.

A command of the README or of docs/ is not run to its end, which takes hours. Its
script, config file, preset, keys, values and flags are checked as the script checks
them; the commands for TPU machines are run with --dry-run. What needs hardware or an
account stands under a line **Needs ...**.
"""

import importlib.util
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.commands import check_flags, load_command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TPU = {f"launch/tpu/{name}.py": load_command(f"tpu/{name}") for name in ("vm", "gke")}
HARDWARE = (
    r"launch/tpu/|^docker |--coordinator|--topology=v|checkpoint=chatglm|service\.url="
)


def commands(page: Path) -> list[tuple[str, str]]:
    """(command, the **Needs ...** line over its block or "") of a page's blocks."""
    found, last_line = [], ""
    blocks = re.split(r"^```", page.read_text(), flags=re.MULTILINE)
    for text, block in zip(blocks[::2], blocks[1::2], strict=False):
        last_line = text.strip().rpartition("\n\n")[2].replace("\n", " ")
        language, _, body = block.partition("\n")
        if not language and re.match(r"(\S*python3?|docker) ", body):
            needs = last_line if last_line.startswith("**Needs") else ""
            for line in body.replace("\\\n", " ").strip().splitlines():
                found += [(part.strip(), needs) for part in line.split("&&")]
    return found


EVERY = [
    pytest.param(command, needs, id=f"{page.name}: {command[:60]}")
    for page in PAGES
    for command, needs in commands(page)
]


def test_there_are_commands():
    assert len(EVERY) > 40


@pytest.mark.parametrize(("command", "needs"), EVERY)
def test_a_command_is_understood(command, needs, capsys, monkeypatch):
    words = shlex.split(command)
    if words[0] in ("docker", ".venv/bin/pip"):
        return
    assert re.fullmatch(r"(\.venv/bin/)?python3?", words[0]), f"unknown: {command}"
    if words[1] == "-m":
        assert words[2] in ("venv", "pytest") or importlib.util.find_spec(words[2])
        return
    script, *arguments = words[1:]
    assert (ROOT / script).is_file(), f"there is no {script}"
    if script in TPU:
        monkeypatch.setattr(subprocess, "run", pytest.fail)
        monkeypatch.chdir(ROOT)
        split = arguments.index("--") if "--" in arguments else len(arguments)
        TPU[script].main([*arguments[:split], "--dry-run", *arguments[split:]])
        assert capsys.readouterr().out
        arguments = arguments[split + 1 :]
        script = "launch/train.py"
    check_flags(script, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_needs_hardware_says_so(page):
    for command, needs in commands(page):
        assert bool(re.search(HARDWARE, command)) <= bool(needs), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), link
    folders = "configs|launch|rlhf_jax|tests|docs|colabs|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)[`:]", text):
        invented = re.search(r"/(mine|test_mine|yours|NAME)\.py", name)
        assert invented or (ROOT / name).exists(), name


def configuration():
    return runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))


def test_the_page_of_the_configuration_is_up_to_date():
    made = configuration()["page"]()
    message = "run python docs/make_configuration.py"
    assert made == (ROOT / "docs" / "configuration.md").read_text(), message


def test_every_key_of_every_config_is_explained():
    script = configuration()
    page = script["page"]()
    sections = dict(
        section.split("\n", 1) for section in re.split(r"^## ", page, flags=re.M)[1:]
    )
    assert not re.findall(r".*\|\s*\|$", page, flags=re.MULTILINE)  # without a reason
    rows = {
        name: set(re.findall(r"^\| `([\w.]+)`", text, flags=re.MULTILINE))
        for name, text in sections.items()
    }
    stages = {path.stem for path in (ROOT / "configs").glob("*.py")} - {"common"}
    assert stages <= set(rows)
    shared = {key for name in set(rows) - stages for key in rows[name]}
    names = {
        "value_optimizer": "optimizer",
        "judge": "service",
        "reward_judge": "service",
    }

    def is_explained(key: str, stage: str) -> bool:
        part, _, inner = key.partition(".")
        if key in rows[stage] | shared or f"{names.get(part)}.{inner}" in shared:
            return True
        return part in stages and is_explained(inner, part)

    for stage in stages:
        config = runpy.run_path(str(ROOT / "configs" / f"{stage}.py"))["get_config"]()
        for key, _ in script["leaves"](config):
            assert is_explained(key, stage), f"{stage}: {key}"
