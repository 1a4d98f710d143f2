"""Evaluate a reward model on any comparisons, with the report that ends its training.

The report holds accuracy with intervals, by intent, by length and by which response is
longer, beside baselines; the correlation of score and length; calibration; and the
worst errors.
"""

import functools

from absl import logging

from rlhf_jax.data import sources
from rlhf_jax.data.encoding import encode_pairs
from rlhf_jax.data.records import Comparison
from rlhf_jax.evaluation.held_out import evaluate_held_out, score_pairs
from rlhf_jax.shared_work import is_first
from rlhf_jax.terminal import listed, print_markdown
from rlhf_jax.training import model_checks, options, weights
from rlhf_jax.training.inputs import agree
from rlhf_jax.training.workdir import done_before, finish, open_workdir


def run(config, workdir: str) -> None:
    """Evaluate `config.reward_model`; write summary.json and the folder evaluation."""
    check_options(config)
    workdir = open_workdir(workdir, config)
    if done_before(workdir):
        return

    # Data
    data = sources.open_data(config.data, workdir)
    read = sources.Reader(config.data, workdir)
    tokenizer = sources.open_tokenizer(config.data, data, config.reward_model, workdir)
    model_checks.check_models(
        tokenizer,
        sources.tokenizer_fingerprint,
        reward_models=[config.reward_model],
    )
    encode = functools.partial(
        encode_pairs,
        tokenizer=tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
        too_long=config.too_long,
    )
    train_file = config.comparisons_train or data / "comparisons.jsonl"
    test_file = config.comparisons or data / "comparisons_test.jsonl"
    comparisons, pairs, dropped = encode(read(test_file, Comparison))
    _, train_pairs, _ = encode(read(train_file, Comparison))
    logging.info("%d pairs; dropped: %s.", len(pairs), listed(dropped))
    agree(
        workdir,
        read.fingerprints,
        tokenizer=tokenizer.fingerprint,
        models=[config.reward_model],
    )

    # Model
    model = weights.load_model(
        config.reward_model, dtype=config.dtype, param_dtype=config.dtype
    )

    # Scores
    scores = score_pairs(
        model,
        pairs,
        pad_id=tokenizer.pad_id,
        multiple=config.pad_to_multiple,
        batch_size=config.batch_size,
    )
    folder = workdir / "evaluation"
    summary = evaluate_held_out(scores, comparisons, pairs, train_pairs, folder)
    if is_first():  # the other processes may be here before the file is written
        print_markdown((folder / "report.md").read_text(encoding="utf-8"))
    checkpoint = weights.fingerprint(config.reward_model)
    finish(workdir, summary | {"checkpoint": checkpoint, "dropped": dict(dropped)})


def check_options(config) -> None:
    """Refuse invalid options before anything is read.

    Raises:
        ValueError: names the option and says what to set instead.
    """
    options.one_of(config, "too_long", ("drop", "truncate_prompt"))
    if not config.reward_model:
        raise ValueError("Give config.reward_model: a workdir of stages/reward.py.")
