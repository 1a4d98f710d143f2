"""The closing table of an evaluation."""

from rlhf_jax import terminal

JUDGED = {
    "testbed": "true quality",
    "reward_model": "the reward model's score",
    "rewards": "the sum of their rewards",
    "judge_model": "a reward model that nothing was trained against",
    "marks": "a chat model's marks",
    "pairs": "a chat model, both orders",
}


def print_table(summary: dict) -> None:
    """Print an evaluation's summary.json as a table, one row per model, without the
    columns that no model fills."""
    rows = [model_row(name, row) for name, row in summary["models"].items()]
    filled = [key for key in rows[0] if any(row[key] for row in rows)]
    if summary["judge"] != "judge_model":  # else it says what was optimised
        filled = [key for key in filled if key != "reward"]
    judge = JUDGED[summary["judge"]]
    terminal.print_table(
        f"Judged by {judge}, against {summary['baseline']}",
        filled,
        [[row[key] for key in filled] for row in rows],
    )
    print("Brackets: 95 % intervals over prompts, of n results each.")
    if "reward_model" in summary:
        agreement = summary["reward_model"]
        print(
            f"Reward model: orders {agreement['accuracy']:.1%} "
            f"[{agreement['accuracy_low']:.1%}, {agreement['accuracy_high']:.1%}] of "
            f"{agreement['pairs']} held-out pairs\nas true quality does."
        )


def model_row(name: str, row: dict) -> dict[str, str]:
    """Return the cells of a model by the names of the columns; "" for missing ones."""
    cells = dict.fromkeys(
        ("model", "n", "win / tie / lose", "net wins", "at equal length"), ""
    )
    cells["model"] = name
    if versus := row.get("against_baseline"):
        shares = " / ".join(f"{versus[key]:.0%}" for key in ("win", "tie", "lose"))
        low, high = versus["net_low"], versus["net_high"]
        cells |= {
            "n": f"{versus.get('n', versus['prompts']):,}",
            "win / tie / lose": shares,
            "net wins": f"{versus['net']:+.1%} [{low:+.1%}, {high:+.1%}]",
            "at equal length": f"{versus['length_controlled_net']:+.1%}",
        }
    cells["no verdict"] = f"{row.get('without_verdict') or ''}"
    cells["quality"] = ""
    if quality := row.get("quality"):
        low, high = quality["low"], quality["high"]
        cells["quality"] = f"{quality['mean']:.2f} [{low:.2f}, {high:.2f}]"
        count = f"{quality['n']:,}" if "n" in quality else ""
        cells["n"] = cells["n"] or count
        if count and count != cells["n"]:
            cells["quality"] += f", n = {count}"
    cells["reward"] = f"{row['score']:.2f}" if "score" in row else ""
    cells["tokens"] = f"{row['length']:.1f}"
    # Answers sampled at another temperature than 1 have a log-ratio instead of a KL.
    for title, key in (("KL", "kl"), ("log-ratio", "log_ratio")):
        cells[title] = f"{row[key]:.2f}" if key in row else ""
    cells["skills"] = f"{row['skills_right']:.0%}" if "skills_right" in row else ""
    nats = f"{row['skills_logprob']:.2f}" if "skills_logprob" in row else ""
    cells["skills, nats"] = nats
    return cells
