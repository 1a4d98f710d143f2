"""Tables and counts for people, complete in a terminal of any width."""

import re
from collections.abc import Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

FOLDED = 24  # characters; longer cells are folded where a terminal is too narrow
GAP = 3  # between two columns


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]):
    """Print a table without cutting anything. Columns that do not fit the terminal
    follow in a second table below, which begins with the same first column; a file or a
    pipe gets one table."""
    longest = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    full = max(80, sum(longest) + GAP * len(longest), cell_len(title))
    console = Console(width=None if Console().is_terminal else full, highlight=False)
    for columns in _parts(longest, console.width):
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for i in columns:
            cells = [row[i] for row in rows]
            is_number = all(re.fullmatch(r"[-+\d.,%/\[\] ]*", cell) for cell in cells)
            table.add_column(
                Text(header[i]),
                justify="right" if i and is_number else "left",
                overflow="fold",
                no_wrap=longest[i] <= FOLDED,
            )
        for row in rows:
            table.add_row(*(Text(row[i]) for i in columns))
        console.print(table)
        title = ""


def print_markdown(text: str) -> None:
    """Print Markdown, unchanged into a file or a pipe, with its tables laid out in a
    terminal."""
    if not Console().is_terminal:
        print(text)
        return
    for part in re.split(r"((?:^\|.*\n?)+)", text, flags=re.MULTILINE):
        if part.startswith("|"):
            header, _, *rows = map(_cells, part.splitlines())
            print_table("", header, rows)
        else:
            print(part.strip())


def listed(counts: Mapping) -> str:
    """Return counts as words: "pairs 8,400; dropped: tie 223"; "nothing" without
    counts. Nested counts are put in brackets."""
    parts = []
    for name, value in counts.items():
        if isinstance(value, Mapping):
            parts.append(f"{name} ({listed(value)})")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.4g}")
        elif isinstance(value, int):
            parts.append(f"{name} {value:,}")
        else:
            parts.append(f"{name} {value}")
    return "; ".join(parts) or "nothing"


def _parts(longest: Sequence[int], width: int) -> list[list[int]]:
    """Return groups of columns that fit beside each other, each with the first
    column."""
    needed = [min(cells, FOLDED) + GAP for cells in longest]
    parts, room = [[0]], width - needed[0]
    for i in range(1, len(longest)):
        if needed[i] > room and len(parts[-1]) > 1:
            parts.append([0])
            room = width - needed[0]
        parts[-1].append(i)
        room -= needed[i]
    return parts


def _cells(line: str) -> list[str]:
    """Split a line of a Markdown table into its cells."""
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    return [cell.strip().replace("\\|", "|") for cell in cells]
