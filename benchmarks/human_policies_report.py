"""Tables and plots of benchmarks/human_policies.py, and its predictions.

All differences are paired by prompt, piece of text or item, and so are their 95 %
intervals, by the bootstrap. A judge's verdict on two answers to a prompt is a tie where
their scores differ by less than 0.1 logits (odds below 52.5 %); "net" is wins minus
losses. There is one seed, and no interval is adjusted for the number of comparisons.
"""

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.human_rewards_report import verdict
from rlhf_jax.data.cleaning.comparison_report import markdown
from rlhf_jax.evaluation.intervals import pair_accuracy
from rlhf_jax.evaluation.report import plots
from rlhf_jax.evaluation.win_rate import (
    length_controlled,
    mean_with_interval,
    results,
    win_rate,
)
from rlhf_jax.files import write_json, write_text, writing_whole

TIE = 0.1  # logits
SEED = 0  # of the bootstrap
SHOWN = 4  # prompts in the sample conversations
INSTRUCT = "instruct"

Values = dict[str, np.ndarray]  # the numbers of a policy, human_policies_measures.py
Measured = dict[str, dict[int, Values]]  # by policy and step

# Endpoints by their titles in tables: the name of what is compared, or of the judge,
# and the factor of the numbers shown.
JUDGES = {"judge": "judge", "judge at equal length": "judge", "second judge": "second"}
DIFFERENCES = {
    "proxy": "proxy",
    "tokens": "tokens",
    "ended": "ended",
    "KL": "kl",
    "text": "text",
    "people": "people",
    "facts": "facts",
    "name": "name",
    "named": "named",
    "JSON": "json",
}
PERCENT = {*JUDGES, "ended", "named", "JSON"}


class Prediction(NamedTuple):
    """A statement made before the run: an endpoint of one policy, compared with
    another, lies between two bounds."""

    text: str
    endpoint: str
    ours: str  # a name of `policy`
    theirs: str
    low: float
    high: float


ANY = float("inf")


def _of_algorithm(algorithm: str) -> list[Prediction]:
    plain, balanced = f"{algorithm}-plain", f"{algorithm}-balanced"
    return [
        *(
            Prediction(f"{arm}: its proxy's score rises by 0.2 or more", "proxy", arm,
                       INSTRUCT, 0.2, ANY)
            for arm in (plain, balanced)
        ),
        *(
            Prediction(f"{arm}: 10 points or more of the judge's net wins over the "
                       "instruct model", "judge", arm, INSTRUCT, 0.1, 1.0)
            for arm in (plain, balanced)
        ),
        Prediction(f"{algorithm}: answers are 3 tokens or more longer under the plain "
                   "proxy than under the balanced one", "tokens", plain, balanced,
                   3.0, ANY),
        Prediction(f"{algorithm}: at equal length the judge prefers the balanced "
                   "proxy's policy to the plain one's", "judge at equal length",
                   balanced, plain, 0.0, 1.0),
        Prediction(f"{algorithm}: the second judge prefers the balanced proxy's policy "
                   "by 5 points or more", "second judge", balanced, plain, 0.05, 1.0),
        Prediction(f"{plain}: from the first step measured to the last the proxy's "
                   "score rises", "proxy", plain, f"{plain}@first", 0.0, ANY),
        Prediction(f"{plain}: over the same steps the judge's verdict at equal length "
                   "does not rise", "judge at equal length", plain, f"{plain}@first",
                   -1.0, 0.0),
        Prediction(f"{plain}: the SFT term keeps 0.01 nats a token of people's answers",
                   "people", f"{plain}-sft", plain, 0.01, ANY),
        Prediction(f"{plain}: the SFT term keeps 0.1 nats of the facts", "facts",
                   f"{plain}-sft", plain, 0.1, ANY),
        Prediction(f"{plain}: the SFT term keeps 0.1 nats of the name", "name",
                   f"{plain}-sft", plain, 0.1, ANY),
        Prediction(f"{plain}: at equal KL the SFT term changes the facts by less than "
                   "0.2 nats", "facts", f"{plain}-sft", f"{plain}@equal KL", -0.2, 0.2),
        Prediction(f"{plain}: at equal KL the SFT term changes people's answers by "
                   "less than 0.02 nats a token", "people", f"{plain}-sft",
                   f"{plain}@equal KL", -0.02, 0.02),
    ]  # fmt: skip


# Written on 2026-11-27, before any reward model or policy was trained.
PREDICTIONS = [*_of_algorithm("rloo"), *_of_algorithm("dpo")]


# Statistics


def policy(name: str, measured: Measured) -> Values | None:
    """Return the numbers of a policy: "ARM" at its last step, "ARM@first" at the first
    step measured, "ARM@equal KL" at the step whose KL is nearest to that of ARM with
    the SFT term; None where it is not measured."""
    arm, _, which = name.partition("@")
    steps = measured.get(arm)
    if not steps:
        return None
    if which == "first":
        return steps[min(steps)]
    if which == "equal KL":
        other = policy(f"{arm}-sft", measured)
        return other and steps[nearest_in_kl(steps, other["kl"].mean())]
    return steps[max(steps)]


def nearest_in_kl(steps: dict[int, Values], kl: float) -> int:
    """Return the step whose mean KL is nearest to `kl`."""
    return min(steps, key=lambda step: abs(steps[step]["kl"].mean() - kl))


def compare(
    ours: Values, theirs: Values, endpoint: str, *, proxy: str = ""
) -> dict[str, float]:
    """Return the difference of two policies in an endpoint, "value", with its interval
    ("low", "high"): net wins under a judge, else the mean difference.

    Args:
        proxy: the reward model that "proxy" stands for.
    """
    if endpoint not in JUDGES:
        name = DIFFERENCES[endpoint]
        name = proxy if name == "proxy" else name
        numbers = mean_with_interval(ours[name] - theirs[name], seed=SEED)
        return {"value": numbers["mean"]} | {x: numbers[x] for x in ("low", "high")}
    judge = JUDGES[endpoint]
    result = results(ours[judge], theirs[judge], tie_margin=TIE)
    if endpoint == "judge at equal length":
        longer = ours["tokens"] - theirs["tokens"]
        numbers, prefix = length_controlled(result, longer, seed=SEED), "length_"
        prefix += "controlled_net"
    else:
        numbers, prefix = win_rate(result, seed=SEED), "net"
    ends = {x: numbers[f"{prefix}_{x}"] for x in ("low", "high")}
    return {"value": numbers[prefix]} | ends


def proxy_of(name: str) -> str:
    """Return the proxy that a policy was trained against."""
    return name.partition("@")[0].split("-")[1]


def accuracy_of(margins: np.ndarray) -> dict[str, float]:
    """Return the share of held-out pairs that a judge orders right, with its interval,
    under the names of a reward model's summary."""
    return {f"eval/{name}": x for name, x in pair_accuracy(margins).items()}


def contrasts_of(measured: Measured) -> list[tuple[str, str]]:
    """Return the pairs of policies to compare besides each with the instruct model: the
    balanced proxy's with the plain one's; with the SFT term and without, at the end and
    at equal KL; and the last step with the first."""
    pairs = [(arm, arm.replace("-balanced", "-plain")) for arm in measured]
    for arm in measured:
        if arm.endswith("-sft"):
            without = arm.removesuffix("-sft")
            pairs += [(arm, without), (arm, f"{without}@equal KL")]
        elif len(measured[arm]) > 1:
            pairs.append((arm, f"{arm}@first"))
    return [(a, b) for a, b in pairs if a != b and policy(b, measured) is not None]


def summarise(measured: Measured, judges: dict[str, dict]) -> dict:
    """Return the results as a tree for JSON."""
    instruct = policy(INSTRUCT, measured)
    policies, contrasts = [], []
    for name, steps in measured.items():
        for step, values in steps.items():
            row = {"policy": name, "step": step, "KL": float(values["kl"].mean())}
            row |= {x: float(values[DIFFERENCES[x]].mean()) for x in DIFFERENCES
                    if x not in ("proxy", "KL")}  # fmt: skip
            if name != INSTRUCT and instruct is not None:
                row["against"] = _compare_all(values, instruct, proxy_of(name))
                result = results(values["judge"], instruct["judge"], tie_margin=TIE)
                rates = win_rate(result, seed=SEED)
                row["verdicts"] = {x: rates[x] for x in ("win", "tie", "lose")}
            policies.append(row)
    for a, b in contrasts_of(measured):
        rows = _compare_all(policy(a, measured), policy(b, measured), proxy_of(a))
        contrasts.append({"policy": a, "other": b, "against": rows})
    return {
        "judges": judges,
        "policies": policies,
        "contrasts": contrasts,
        "predictions": [_judged(p, measured) for p in PREDICTIONS],
    }


def _compare_all(ours: Values, theirs: Values, proxy: str) -> dict[str, dict]:
    return {
        endpoint: compare(ours, theirs, endpoint, proxy=proxy)
        for endpoint in (*JUDGES, *DIFFERENCES)
    }


def _judged(prediction: Prediction, measured: Measured) -> dict:
    """Return a prediction with what was measured."""
    p, record = prediction, prediction._asdict()
    record |= {"low": _finite(p.low), "high": _finite(p.high)}
    ours, theirs = policy(p.ours, measured), policy(p.theirs, measured)
    if ours is None or theirs is None:
        return record | {"verdict": "not measured"}
    value = compare(ours, theirs, p.endpoint, proxy=proxy_of(p.ours))
    return record | {"measured": value, "verdict": verdict(p.low, p.high, value)}


def _finite(bound: float) -> float | None:
    return bound if np.isfinite(bound) else None


# The page


def page(found: dict, conversations: dict[str, list[dict]]) -> str:
    """Return the results as a page of tables."""
    judges = [
        {
            "model": name,
            "held-out pairs in the right order": _share(row, "eval/accuracy"),
        }
        for name, row in found["judges"].items()
    ]
    policies = [
        {"policy": row["policy"], "step": row["step"], "KL": f"{row['KL']:.2f}"}
        | {"tokens": f"{row['tokens']:.0f}", "ended": f"{100 * row['ended']:.0f}"}
        | {
            "win / tie / lose": " / ".join(
                f"{100 * x:.0f}" for x in row.get("verdicts", {}).values()
            )
        }
        | {
            endpoint: cell(row["against"][endpoint], endpoint)
            if "against" in row
            else ""
            for endpoint in (*JUDGES, "proxy")
        }
        for row in found["policies"]
    ]
    kept = ("text", "people", "facts", "name", "named", "JSON")
    forgotten = [
        {"policy": row["policy"], "step": row["step"], "KL": f"{row['KL']:.2f}"}
        | {
            endpoint: cell(row["against"][endpoint], endpoint)
            if "against" in row
            else _plain(row[endpoint], endpoint)
            for endpoint in kept
        }
        for row in found["policies"]
    ]
    contrasts = [
        {"policy": row["policy"], "minus": row["other"]}
        | {x: cell(row["against"][x], x) for x in (*JUDGES, "tokens", "KL", *kept[:4])}
        for row in found["contrasts"]
    ]
    predictions = [
        {
            "prediction": row["text"],
            "measured": cell(row["measured"], row["endpoint"])
            if "measured" in row
            else "",
            "verdict": row["verdict"],
        }
        for row in found["predictions"]
    ]
    return "\n".join(
        [
            "# Policies aligned to people's preferences\n",
            "`python -m benchmarks.human_policies`, whose docstring explains the arms. "
            "Brackets hold 95 % intervals over prompts or items, paired. Judges and "
            "shares in points; KL in nats a response; text and people in nats a token; "
            "facts and name, the log-probability of the right end less the likeliest "
            "wrong one, in nats.\n",
            markdown("Judges and proxies", judges) if judges else "",
            markdown("Against the instruct model", policies)
            if policies
            else "Nothing is measured yet.\n",
            markdown("What is forgotten: changes from the instruct model", forgotten)
            if forgotten
            else "",
            markdown("Differences of policies", contrasts) if contrasts else "",
            markdown("Predictions, written before the run", predictions),
            "![Scores, verdicts, length and forgetting against KL](human_policies.png)"
            "\n",
            samples(conversations),
        ]
    )


def cell(numbers: dict[str, float], endpoint: str) -> str:
    """Return a difference with its interval as text."""
    factor, digits = (100, 1) if endpoint in PERCENT else (1, 2)
    value, low, high = (
        f"{factor * numbers[x]:+.{digits}f}" for x in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"


def _plain(value: float, endpoint: str) -> str:
    return f"{100 * value:.0f} %" if endpoint in PERCENT else f"{value:.2f}"


def _share(row: dict, name: str) -> str:
    value, low, high = (100 * row[f"{name}{x}"] for x in ("", "_low", "_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def samples(conversations: dict[str, list[dict]]) -> str:
    """Return the answers of all policies, at their last steps, to the first prompts."""
    if INSTRUCT not in conversations:
        return ""
    lines = ["## Sample conversations\n"]
    for i, row in enumerate(conversations[INSTRUCT][:SHOWN]):
        lines.append(f"**{_line(row['prompt'])}**\n")
        for name, rows in conversations.items():
            end = "" if rows[i]["ended"] else " ..."
            score = f"judge {rows[i]['judge']:+.2f}, {rows[i]['tokens']:.0f} tokens"
            lines.append(f"- {name} ({score}): {_line(rows[i]['response'])}{end}")
        lines.append("")
    return "\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


# The plot


def plot(measured: Measured, path: Path) -> None:
    """Plot the endpoints against KL: for each arm without the SFT term a curve that
    begins at the instruct model, and for each with it a hollow mark."""
    instruct = policy(INSTRUCT, measured)
    titles = {
        "proxy": "its own proxy's score, change",
        "judge": "net wins, judge",
        "judge at equal length": "net wins at equal length, judge",
        "tokens": "tokens a response, change",
        "facts": "facts, change in nats",
        "people": "people's answers, nats a token",
    }
    arms = sorted({x.removesuffix("-sft") for x in measured if x != INSTRUCT})
    with mpl.rc_context(plots.STYLE | plots.IN_FILE):
        figure = Figure((10.5, 5.6), layout="constrained")
        panels = figure.subplots(2, 3).ravel()
        for axes, (endpoint, title) in zip(panels, titles.items(), strict=True):
            for i, arm in enumerate(arms):
                for name in (arm, f"{arm}-sft"):
                    if name in measured:
                        _draw(axes, measured[name], instruct, endpoint, name, i)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.set_title(title)
            axes.set_xlabel("KL to the instruct model, nats a response")
            axes.locator_params(axis="x", nbins=6)
        handles, labels = panels[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=4)
        with writing_whole(path, "wb") as file:
            figure.savefig(file, dpi=110)


def _draw(axes, steps: dict[int, Values], instruct, endpoint, name, number) -> None:
    has_term = name.endswith("-sft")
    along = [values for _, values in sorted(steps.items())]
    along = along if has_term else [instruct, *along]
    rows = [compare(x, instruct, endpoint, proxy=proxy_of(name)) for x in along]
    kl = [values["kl"].mean() for values in along]
    value, low, high = (
        np.array([r[x] for r in rows]) for x in ("value", "low", "high")
    )
    colour = plots.colour(number)
    bars = np.maximum([value - low, high - value], 0)
    axes.errorbar(
        kl, value, bars, color=colour, elinewidth=0.7, label=name, marker="o",
        markersize=5, markerfacecolor="white" if has_term else colour,
        linestyle="none" if has_term else "-",
    )  # fmt: skip


def write(
    path: Path,
    measured: Measured,
    judges: dict[str, dict],
    conversations: dict[str, list[dict]],
) -> None:
    """Write the results to `path` with the endings .json, .md and .png, and print
    them."""
    found = summarise(measured, judges)
    write_json(path.with_suffix(".json"), found)
    write_text(path.with_suffix(".md"), page(found, conversations))
    if INSTRUCT in measured:
        plot(measured, path.with_suffix(".png"))
    print(page(found, conversations))
