"""The runs of a sweep, and the table of their results."""

import ast
import itertools
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from rlhf_jax.launching.cli import check_config_flags
from rlhf_jax.launching.closing import main_number
from rlhf_jax.launching.jobs import Job, check_jobs
from rlhf_jax.training.workdir import is_finished, read_summary


def variants(
    config: str,
    *,
    grid: Sequence[str] = (),
    together: Sequence[str] = (),
    draws: Sequence[str] = (),
    count: int = 0,
    seed: int = 0,
) -> list[dict]:
    """Return the overrides of each run: key -> value.

    Args:
        config: FILE.py:PRESET; a function `sweep(add)` of the file adds runs.
        grid: "config.KEY=V,V", of which the product is taken.
        together: "config.KEY=V,V", whose values are combined one by one.
        draws: "config.KEY=LOW:HIGH[:log]", drawn `count` times.
        count: the number of runs that are drawn; 0 takes all.
        seed: the seed of the draws.

    Raises:
        ValueError: an argument has another form.
    """
    grid = [_values(text) for text in grid]
    together = [_values(text) for text in together]
    lengths = {len(values) for _, values in together}
    if len(lengths) > 1:
        raise ValueError(
            f"--list: the keys have different numbers of values: {lengths}"
        )
    rows = [
        {key: values[i] for key, values in together}
        for i in range(lengths.pop() if lengths else 1)
    ]
    keys = [key for key, _ in grid]
    products = itertools.product(*(values for _, values in grid))
    runs = [row | dict(zip(keys, p, strict=True)) for p in products for row in rows]
    own = runpy.run_path(config.partition(":")[0]).get("sweep")
    if own is not None:
        added: list[dict] = []
        own(lambda **fields: added.append(fields))
        runs = [run | fields for run in added for fields in runs]
    ranges = [_range(text) for text in draws]
    if ranges and not count:
        raise ValueError("--draw: say how many runs with --random=N.")
    rng = np.random.default_rng(seed)
    if ranges:
        chosen = rng.choice(len(runs), count)
        return [runs[i] | {key: draw(rng) for key, draw in ranges} for i in chosen]
    if count and count < len(runs):
        chosen = rng.choice(len(runs), count, replace=False)
        runs = [runs[i] for i in sorted(chosen)]
    return runs


def make_jobs(
    config: str, runs: list[dict], folder: Path, *, same: Sequence[str] = ()
) -> list[Job]:
    """Return one job per run, in a folder named after the run's own overrides.

    Args:
        config: FILE.py:PRESET.
        same: "config.KEY=V", the same in every run.

    Raises:
        ValueError: the config does not accept a key or a value, two runs are equal, or
            options or inputs of a run are invalid.
    """
    pairs = map(_key_and_text, same)
    same = {key: _value(text) for key, text in pairs}
    jobs = []
    for fields in runs:
        name = ",".join(f"{key}={value}" for key, value in fields.items()) or "run"
        name = name.replace("/", "_")
        jobs.append(Job(name, config, same | fields, folder / name))
    counts = Counter(job.name for job in jobs)
    if len(counts) < len(jobs):
        raise ValueError(f"The same run twice: {counts.most_common(1)[0][0]}.")
    for job in jobs:
        overrides = [f"--config.{key}={value}" for key, value in job.overrides.items()]
        check_config_flags(["", f"--config={config}", *overrides])
        try:
            job.resolve()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{job.name}: {error}") from None
    check_jobs(jobs)
    return jobs


def table(
    jobs: list[Job], failed: dict[str, str], metric: str = "", *, lowest: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the runs, the best run first and runs without
    the metric last.

    Args:
        metric: a number of summary.json, with dots between nested keys; "" shows the
            main number of the stage and keeps the order of the runs.
        lowest: True if the lowest number is the best.
    """
    summaries = {
        job.name: read_summary(job.workdir)
        for job in jobs
        if is_finished(job.workdir) and job.name not in failed
    }
    shown = metric or main_number(jobs[0].resolve().stage)
    values = {
        name: value
        for name, summary in summaries.items()
        if (value := _find(summary, shown)) is not None
    }
    if metric and summaries and not values:
        keys = sorted({key for summary in summaries.values() for key in summary})
        logging.warning("No run reports %r; known: %s.", metric, ", ".join(keys))
    sign = 1 if lowest else -1
    if metric:
        jobs = sorted(
            jobs,
            key=lambda job: (job.name not in values, sign * values.get(job.name, 0)),
        )
    rows = [
        [
            job.name,
            f"{values[job.name]:.4g}" if job.name in values else "",
            failed.get(job.name, "done"),
        ]
        for job in jobs
    ]
    return ["run", shown or "metric", "state"], rows


def _find(summary: dict, metric: str) -> float | None:
    """Return the number of a metric, which is a key or keys with dots between."""
    value = summary.get(metric)
    if value is None:
        value = summary
        for key in metric.split("."):
            value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def _values(text: str) -> tuple[str, list]:
    key, value = _key_and_text(text)
    values = _value(f"[{value}]")  # numbers and tuples; words do not parse
    return key, values if isinstance(values, list) else list(
        map(_value, value.split(","))
    )


def _range(text: str) -> tuple[str, Callable[[np.random.Generator], float]]:
    """Return a key and a function that draws its value: a whole number between whole
    numbers, otherwise a number of three digits."""
    key, value = _key_and_text(text)
    bounds, scale = value.removesuffix(":log"), value.endswith(":log")
    ends = [_value(part) for part in bounds.split(":")]
    if len(ends) != 2 or not all(isinstance(x, int | float) for x in ends):
        raise ValueError(f"{text!r} is not of the form config.KEY=LOW:HIGH[:log].")
    low, high = ends
    if not low < high or (scale and low <= 0):
        raise ValueError(f"{text!r}: LOW must be below HIGH, and above 0 for log.")
    if scale:
        return key, lambda rng: _short(np.exp(rng.uniform(np.log(low), np.log(high))))
    if isinstance(low, int) and isinstance(high, int):
        return key, lambda rng: int(rng.integers(low, high + 1))
    return key, lambda rng: _short(rng.uniform(low, high))


def _short(x: float) -> float:
    return float(f"{x:.3g}")


def _key_and_text(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key.startswith("config.") or not value:
        raise ValueError(f"{text!r} is not of the form config.KEY=VALUE.")
    return key.removeprefix("config."), value


def _value(text: str):
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
