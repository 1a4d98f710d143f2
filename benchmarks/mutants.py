"""Mutation testing: does a test fail when the code is changed?

python -m benchmarks.mutants [--files=rlhf_jax/losses/kl.py,...] [--sample=40]

Every mutant is one small change of one file (see `_places`), run against that file's
own tests, all in one process, so that shared code is imported and compiled once. The
tests that found most mutants run first. A sample is the same every time. The survivors
are printed as lines for docs/mutants.md.
"""

import argparse
import ast
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

ROOT = Path(__file__).parents[1]
GOLDEN = "tests/algorithms/test_golden.py::test_two_steps_have_their_golden_metrics"
HYPER = "tests/algorithms/test_hyper.py::test_an_option_reaches_the_field_of_its_name"
STAGES = "tests/stages/test_stages.py"
FUSED = "tests/parallel/test_fused_update.py"
SCORES = "tests/generation/test_response_scores.py"
OF_PPO = (
    "without_a_critic_a_response_has_one_advantage_and_there_is_no_value",
    "a_gradient_that_is_not_finite_is_skipped_and_counted_for_either_model",
    "the_kl_in_the_loss_pulls_to_the_reference_and_leaves_the_rewards_alone",
)
FILES = {  # file -> its quick tests
    "rlhf_jax/losses/masked.py": ["tests/losses/test_masked.py"],
    "rlhf_jax/losses/kl.py": ["tests/losses/test_kl.py"],
    "rlhf_jax/losses/advantages.py": ["tests/losses/test_advantages.py"],
    "rlhf_jax/losses/ppo.py": ["tests/losses/test_ppo.py"],
    "rlhf_jax/losses/aggregation.py": ["tests/losses/test_aggregation.py"],
    "rlhf_jax/losses/correction.py": ["tests/losses/test_correction.py"],
    "rlhf_jax/losses/dpo.py": ["tests/losses/test_dpo.py"],
    "rlhf_jax/losses/kto.py": ["tests/losses/test_kto.py"],
    "rlhf_jax/losses/orpo.py": ["tests/losses/test_orpo.py"],
    "rlhf_jax/losses/reward.py": ["tests/losses/test_reward.py"],
    "rlhf_jax/losses/sft.py": ["tests/losses/test_sft.py"],
    "rlhf_jax/losses/logprobs.py": ["tests/losses/test_logprobs.py"],
    "rlhf_jax/generation/sampling.py": ["tests/generation/test_sampling.py"],
    "rlhf_jax/generation/scoring.py": [
        "tests/generation/test_scoring.py",
        SCORES,
        f"{GOLDEN}[sft]",
        f"{GOLDEN}[dpo]",
    ],
    "rlhf_jax/generation/rollout.py": [
        "tests/generation/test_responses.py::"
        "test_a_rollout_has_the_responses_of_its_batch_in_their_order",
        "tests/ppo/test_experience.py::"
        "test_several_responses_to_a_prompt_differ_and_the_first_keep_their_numbers",
    ],
    "rlhf_jax/generation/responses.py": ["tests/generation/test_responses.py"],
    "rlhf_jax/generation/rows.py": ["tests/generation/test_responses.py"],
    "rlhf_jax/data/batching.py": ["tests/data/test_batching.py"],
    "rlhf_jax/data/encoding.py": ["tests/data/test_encoding.py"],
    "rlhf_jax/data/cleaning/annotator_quality.py": [
        "tests/data/cleaning/test_annotator_quality.py"
    ],
    "rlhf_jax/data/cleaning/comparison_report.py": [
        "tests/data/cleaning/test_comparison_report.py"
    ],
    "rlhf_jax/data/cleaning/filters.py": ["tests/data/cleaning/test_filters.py"],
    "rlhf_jax/data/cleaning/length_balance.py": [
        "tests/data/cleaning/test_length_balance.py"
    ],
    "rlhf_jax/data/cleaning/pair_rules.py": ["tests/data/cleaning/test_pair_rules.py"],
    "rlhf_jax/data/cleaning/prompt_filters.py": [
        "tests/data/cleaning/test_prompt_filters.py"
    ],
    "rlhf_jax/data/cleaning/prompt_quality.py": [
        "tests/data/cleaning/test_prompt_quality.py"
    ],
    "rlhf_jax/data/cleaning/votes.py": ["tests/data/cleaning/test_votes.py"],
    "rlhf_jax/training/accumulate.py": ["tests/training/test_accumulate.py"],
    "rlhf_jax/training/optimizers.py": ["tests/training/test_optimizers.py"],
    "rlhf_jax/training/state.py": [
        f"{GOLDEN}[sft]",
        "tests/training/test_optimizers.py",
        f"{FUSED}::test_a_tied_embedding_gets_the_gradients_of_both_its_uses",
        f"{FUSED}::test_accumulation_and_a_fused_update_exclude_each_other",
    ],
    "rlhf_jax/algorithms/sft.py": [
        f"{HYPER}[sft]",
        f"{GOLDEN}[sft]",
        "tests/algorithms/test_batch_loss.py",
    ],
    "rlhf_jax/algorithms/reward.py": [
        f"{HYPER}[reward]",
        f"{GOLDEN}[reward]",
        "tests/algorithms/test_batch_loss.py",
    ],
    "rlhf_jax/algorithms/dpo.py": [
        f"{HYPER}[dpo]",
        f"{GOLDEN}[dpo]",
        "tests/algorithms/test_dpo.py",
        "tests/algorithms/test_composition.py::"
        "test_a_step_follows_the_sum_of_its_terms_gradients[step_of_dpo]",
    ],
    **{
        f"rlhf_jax/{file}.py": [
            f"{HYPER}[ppo]",
            f"{GOLDEN}[ppo]",
            "tests/algorithms/test_composition.py",
            "tests/ppo/test_experience.py",
            "tests/algorithms/test_variants.py",
            *(f"tests/algorithms/test_ppo.py::test_{name}" for name in OF_PPO),
        ]
        for file in ("algorithms/ppo", "ppo/state", "ppo/forward", "ppo/experience")
    },
    **{
        f"rlhf_jax/stages/{stage}.py": [
            f"{STAGES}::test_a_run_leaves_its_files[{stage}]",
            f"tests/stages/test_{stage}.py",
        ]
        for stage in ("reward", "dpo", "ppo")
    },
    "rlhf_jax/stages/sft.py": [
        f"{STAGES}::test_a_run_leaves_its_files[sft]",
        f"{STAGES}::test_a_resume_gives_the_bits_of_an_uninterrupted_run[sft]",
        f"{STAGES}::test_another_seed_is_another_run",
    ],
}
# A mutant counts as found if its tests take more than TIMES the processor time of the
# unchanged file's tests plus SECONDS.
TIMES, SECONDS = 4, 20

SWAPS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max"}
FIRST = ast.parse("lambda first, *_, **__: first", mode="eval").body


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, description of the change, changed source) of every mutant."""
    tree = ast.parse(source)
    for line, change, node, field, value in list(_places(tree)):
        old = getattr(node, field)
        setattr(node, field, value)
        yield line, change, ast.unparse(tree)
        setattr(node, field, old)


def _places(tree: ast.AST) -> Iterator[tuple[int, str, ast.AST, str, object]]:
    """Yield (line, change, node, its field, the field's other value) of every change:
    another operator or comparison, a number + 1, no sign, min for max, a condition's
    opposite, two neighbouring arguments swapped, a call's first argument for its
    result."""
    for node in _code(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign):
            other = SWAPS.get(type(node.op))
            if other:
                yield _change(node, "op", other(), type(node.op).__name__)
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            other = SWAPS[type(node.ops[0])]()
            name = type(node.ops[0]).__name__
            yield _change(node, "ops", [other, *node.ops[1:]], name)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield _change(node, "op", ast.UAdd(), "minus sign")
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            yield _change(node, "operand", ast.UnaryOp(ast.Invert(), node.operand), "~")
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield _change(node, "value", not node.value, str(node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield _change(node, "value", node.value + 1, str(node.value))
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield _change(node, "attr", NAMES[node.attr], node.attr)
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            opposite = ast.UnaryOp(ast.Not(), node.test)
            yield node.lineno, "the opposite condition", node, "test", opposite
        elif isinstance(node, ast.comprehension) and node.ifs:
            opposite = ast.UnaryOp(ast.Not(), node.ifs[0])
            line = node.ifs[0].lineno
            yield line, "the opposite condition", node, "ifs", [opposite]
        elif isinstance(node, ast.Call):
            yield from _of_call(node)


def _of_call(node: ast.Call) -> Iterator[tuple[int, str, ast.AST, str, object]]:
    """Yield the changes of a call's arguments."""
    plain = [a for a in node.args if not isinstance(a, ast.Starred)]
    if len(plain) == len(node.args) > 1:
        name = ast.unparse(node.func)
        yield node.lineno, f"{name}(x, ...) -> x", node, "func", FIRST
        if name.split(".")[-1] not in NAMES:  # min(x, y) is min(y, x)
            swapped = [plain[1], plain[0], *plain[2:]]
            yield node.lineno, f"{name}(x, y) -> (y, x)", node, "args", swapped
    for i, (one, two) in enumerate(zip(node.keywords, node.keywords[1:], strict=False)):
        if one.arg and two.arg and ast.dump(one.value) != ast.dump(two.value):
            swapped = [
                ast.keyword(one.arg, two.value),
                ast.keyword(two.arg, one.value),
            ]
            changed = [*node.keywords[:i], *swapped, *node.keywords[i + 2 :]]
            change = f"{one.arg}=x, {two.arg}=y -> y, x"
            yield one.value.lineno, change, node, "keywords", changed


def _change(
    node, field: str, value, what: str
) -> tuple[int, str, ast.AST, str, object]:
    shown = value[0] if isinstance(value, list) else value
    shown = type(shown).__name__ if isinstance(shown, ast.AST) else shown
    return node.lineno, f"{what} -> {shown}", node, field, value


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every node that computes; skip annotations, decorators, fields' defaults,
    messages, errors and the log."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_told(child):
                if isinstance(node, ast.ClassDef) and isinstance(child, ast.AnnAssign):
                    continue
                yield child
                yield from _code(child)


def _is_told(node: ast.AST) -> bool:
    """Return True if a node only writes a message, for the log or an error."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return isinstance(node.func.value, ast.Name) and node.func.value.id == "logging"
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    return isinstance(node, ast.Raise | ast.JoinedStr)


class Order:
    """A pytest plugin that runs the tests that found most mutants first, then the
    quickest; the durations are those of the first run."""

    def __init__(self):
        self.found, self.seconds = Counter(), Counter()
        self.measures = True

    def pytest_collection_modifyitems(self, items):
        items.sort(key=lambda i: (-self.found[i.nodeid], self.seconds[i.nodeid]))

    def pytest_runtest_logreport(self, report):
        self.found[report.nodeid] += report.failed and not self.measures
        if self.measures:
            self.seconds[report.nodeid] += report.duration


def passes(copy_of_root: Path, file: str, source: str, order: Order, limit=0.0) -> bool:
    """Return True if all of a file's tests pass with another source, within `limit`
    seconds of processor time (0: no limit)."""
    (copy_of_root / file).write_text(source)
    for name in list(sys.modules):
        if name.split(".")[0] in ("rlhf_jax", "tests") and name != "tests.conftest":
            del sys.modules[name]
    jax.clear_caches()  # which hold the classes of those modules
    flags = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    # Not the settings' type checks: they keep the classes of an earlier mutant.
    flags += ["-o", "addopts=--import-mode=importlib", "-m", "not slow"]
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        with (
            open(os.devnull, "w") as silence,
            contextlib.redirect_stdout(silence),
            contextlib.redirect_stderr(silence),
        ):
            return pytest.main([*flags, *FILES[file]], plugins=[order]) == 0
    except TimeoutError:
        return False
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def time_is_up(*_):
    raise TimeoutError("The mutant's time is up.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", default=",".join(FILES))
    parser.add_argument("--sample", type=int, default=0, help="of a file; 0: all")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "copy"
        unwanted = shutil.ignore_patterns(".*", "__pycache__", "runs", "results")
        shutil.copytree(ROOT, copied, ignore=unwanted)
        os.chdir(copied)
        sys.path.insert(0, str(copied))
        for file in arguments.files.split(","):
            test(copied, file, arguments.sample)


def test(copied: Path, file: str, sample: int) -> None:
    """Try a file's mutants and print those that no test finds."""
    source, order = (ROOT / file).read_text(), Order()
    start = time.process_time()
    if not passes(copied, file, source, order):
        raise SystemExit(f"{file}: its tests fail without any change.")
    limit = TIMES * (time.process_time() - start) + SECONDS
    order.measures = False
    chosen = list(mutants(source))
    total = len(chosen)
    if 0 < sample < total:
        chosen = random.Random(0).sample(chosen, sample)
    alive = 0
    for line, change, changed in sorted(chosen, key=lambda mutant: mutant[0]):
        if passes(copied, file, changed, order, limit):
            alive += 1
            text = source.splitlines()[line - 1].strip()
            print(f"| `{file}:{line}` | `{text}` | {change} | |", flush=True)
    if not passes(copied, file, source, order):
        raise SystemExit(f"{file}: the mutants left something behind that fails.")
    seconds = (time.process_time() - start) / (len(chosen) + 2)
    print(
        f"| `{file}` | {total} | {len(chosen)} | {len(chosen) - alive} | "
        f"{seconds:.1f} seconds a run",
        flush=True,
    )


if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a mutant's bytecode would be reused for the next
    signal.signal(signal.SIGPROF, time_is_up)
    # The same examples for every mutant, and no time spent on shrinking them.
    hypothesis_settings.register_profile(
        "mutants",
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
    )
    main()
