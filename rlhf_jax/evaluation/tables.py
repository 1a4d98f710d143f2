"""The closing table of an evaluation."""

from rich.console import Console
from rich.table import Table

JUDGED = {
    "testbed": "true quality",
    "reward_model": "the reward model's score",
    "marks": "a chat model's marks",
    "pairs": "a chat model, both orders",
}


def print_table(summary: dict) -> None:
    """Print an evaluation's summary.json as a table, one row a model."""
    Console(width=None if Console().is_terminal else 130).print(summary_table(summary))
    if "reward_model" in summary:
        found = summary["reward_model"]
        print(
            f"Reward model: orders {found['accuracy']:.1%} of {found['pairs']} "
            "held-out pairs as true quality does (95 % interval "
            f"{found['accuracy_low']:.1%} to {found['accuracy_high']:.1%})."
        )


def print_held_out(reward: dict) -> None:
    """Print a reward model's accuracy on held-out comparisons, from its summary, beside
    what it has to beat."""
    rivals = ("always_longer", "always_shorter", "bag_of_words")
    known = [name for name in rivals if f"eval/{name}" in reward]
    beside = ", ".join(
        f"{name.replace('_', ' ')} {reward[f'eval/{name}']:.1%}" for name in known
    )
    print(
        f"Reward model: agrees with {reward['eval/accuracy']:.1%} of the held-out "
        f"comparisons (95 % interval {reward['eval/accuracy_low']:.1%} to "
        f"{reward['eval/accuracy_high']:.1%}); {beside}."
    )


def summary_table(summary: dict) -> Table:
    against = summary["baseline"]
    judge = JUDGED[summary["judge"]]
    table = Table(title=f"Judged by {judge}, against {against}")
    for column in ("model", "quality", "win / tie / lose", "net wins [95 %]"):
        table.add_column(column)
    for column in ("at equal length", "tokens", "KL", "identity", "JSON"):
        table.add_column(column, justify="right")
    for name, row in summary["models"].items():
        quality, versus = row.get("quality"), row.get("against_baseline")
        mean, shares, net, equal = "", "", "", ""
        if quality:
            mean = f"{quality['mean']:.2f} "
            mean += f"[{quality['low']:.2f}, {quality['high']:.2f}]"
        if versus:
            shares = " / ".join(f"{versus[k]:.0%}" for k in ("win", "tie", "lose"))
            net = f"{versus['net']:+.1%} [{versus['net_low']:+.1%}, "
            net += f"{versus['net_high']:+.1%}]"
            equal = f"{versus['length_controlled_net']:+.1%}"
        table.add_row(
            name,
            mean,
            shares,
            net,
            equal,
            f"{row['length']:.1f}",
            f"{row['kl']:.1f}",
            *(
                f"{row[f'{probe}_probes']:.0%}" if f"{probe}_probes" in row else ""
                for probe in ("identity", "json")
            ),
        )
    return table
