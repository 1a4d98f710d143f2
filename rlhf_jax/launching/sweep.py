"""The runs of a sweep: which they are, and the table of what came out."""

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
    """The overrides of each run: key -> value.

    Args:
        config: FILE.py:PRESET; a function `sweep(add)` of the file adds runs.
        grid: "config.KEY=V,V", whose product is taken.
        together: "config.KEY=V,V", whose values go together.
        draws: "config.KEY=LOW:HIGH[:log]", drawn `count` times.
        count: so many of the runs are drawn; 0: all.
        seed: of the draws.

    Raises:
        ValueError: one of these is not of its form.
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
    found = [row | dict(zip(keys, p, strict=True)) for p in products for row in rows]
    own = runpy.run_path(config.partition(":")[0]).get("sweep")
    if own is not None:
        added: list[dict] = []
        own(lambda **fields: added.append(fields))
        found = [run | fields for run in added for fields in found]
    ranges = [_range(text) for text in draws]
    if ranges and not count:
        raise ValueError("--draw: say how many runs with --random=N.")
    rng = np.random.default_rng(seed)
    if ranges:
        chosen = rng.choice(len(found), count)
        return [found[i] | {key: draw(rng) for key, draw in ranges} for i in chosen]
    if count and count < len(found):
        chosen = rng.choice(len(found), count, replace=False)
        found = [found[i] for i in sorted(chosen)]
    return found


def make_jobs(
    config: str, runs: list[dict], folder: Path, *, same: Sequence[str] = ()
) -> list[Job]:
    """One job a run, in a folder named after what is its own.

    Args:
        config: FILE.py:PRESET.
        same: "config.KEY=V", the same in every run.

    Raises:
        ValueError: a key or a value that the config does not take, or two runs that
            are the same; or options or inputs of a run that cannot work.
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
    """The header and the rows of the runs, best first; those without the metric at the
    end.

    Args:
        metric: a number of summary.json, dots for what is inside; "": the main number
            of the stage is shown, and the runs stay in their order.
        lowest: whether the lowest is the best.
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
        known = sorted({key for summary in summaries.values() for key in summary})
        logging.warning("No run reports %r; known: %s.", metric, ", ".join(known))
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
    """The number that a metric names: a key, or keys with dots between."""
    found = summary.get(metric)
    if found is None:
        found = summary
        for key in metric.split("."):
            found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, int | float) else None


def _values(text: str) -> tuple[str, list]:
    key, value = _key_and_text(text)
    found = _value(f"[{value}]")  # numbers and tuples; words do not parse
    return key, found if isinstance(found, list) else list(
        map(_value, value.split(","))
    )


def _range(text: str) -> tuple[str, Callable[[np.random.Generator], float]]:
    """A key, and a function that draws it: whole numbers between whole numbers, else
    to three digits."""
    key, value = _key_and_text(text)
    bounds, scale = value.removesuffix(":log"), value.endswith(":log")
    found = [_value(part) for part in bounds.split(":")]
    if len(found) != 2 or not all(isinstance(x, int | float) for x in found):
        raise ValueError(f"{text!r} is not of the form config.KEY=LOW:HIGH[:log].")
    low, high = found
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
