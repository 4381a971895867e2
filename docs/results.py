"""Write docs/results.md from the measurements in docs/results/*.json, or measure the cheapest rows again.

    python docs/results.py            # write the page
    python docs/results.py --check    # run the rows that have a check and compare, as `make results-check` does

A file is a table: `title`, `order`, `text` (paragraphs before the table), `columns`, `rows`, and `after` (paragraphs
behind it). A row has `cells`, one a column: text, a number, or a list of numbers, one a seed, of which the page gives
the mean and the sample deviation. Its `command`, `commit`, `machine`, `seeds` and `time` say how it was measured;
what all rows share stands in the table itself. A table's `check` lists arguments of `resnest-seg` that measure its
rows again (`{folder}` is an empty folder); a row's names the JSON file that they write there, the share in it, the
column that has it in %, and the tolerance in points.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("results.md")
FOLDER = PAGE.with_suffix("")
ORIGINS = ("command", "commit", "machine", "seeds", "time")


def tables() -> list[dict[str, Any]]:
    """The tables in the order of the page."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in FOLDER.glob("*.json")]
    return sorted(found, key=lambda table: table["order"])


def shown(cell: object) -> str:
    """A cell: text as it is, one number as it is, of several the mean and the sample deviation."""
    if isinstance(cell, list):
        if len(cell) == 1:
            return f"{cell[0]:.2f}"
        return f"{statistics.mean(cell):.2f} +- {statistics.stdev(cell):.2f}"
    return f"{cell:.2f}" if isinstance(cell, float) else "-" if cell is None else str(cell)


def origins(table: Mapping[str, Any]) -> list[str]:
    """How the rows were measured: what they share in one line, and a numbered line for the rest of each."""
    rows = [{key: row.get(key, table.get(key)) for key in ORIGINS} for row in table["rows"]]
    shared = {key for key in ORIGINS if all(row[key] == rows[0][key] for row in rows)}

    def words(row: Mapping[str, Any], keys: set[str]) -> str:
        texts = {
            "command": f"`{row['command']}`",
            "commit": f"commit {row['commit']}",
            "seeds": f"seed{'s' * (len(row['seeds'] or ()) > 1)} {', '.join(map(str, row['seeds'] or ()))}",
        }
        return "; ".join(texts.get(key, row[key]) for key in ORIGINS if key in keys and row[key])

    lines = [f"All rows: {words(rows[0], shared)}.", ""] if words(rows[0], shared) else []
    rest = [words(row, set(ORIGINS) - shared) for row in rows]
    return [*lines, *(f"{number}. {text}" for number, text in enumerate(rest, start=1) if text)]


def rendered(table: Mapping[str, Any]) -> str:
    """A table of the page, and how its rows were measured."""
    columns, rows = table["columns"], table["rows"]
    lines = [f"## {table['title']}", "", *(f"{text}\n" for text in table.get("text", ()))]
    lines += [f"| | {' | '.join(columns)} |", "|---:|---|" + "---:|" * (len(columns) - 1)]
    for number, row in enumerate(rows, start=1):
        lines.append(f"| {number} | {' | '.join(shown(row['cells'].get(name)) for name in columns)} |")
    lines += ["", *origins(table), ""]
    return "\n".join([*lines, *(f"{text}\n" for text in table.get("after", ()))])


def published_table() -> str:
    """The authors' figures of the checkpoints that load here."""
    from resnest_seg.models.published_weights import PUBLISHED

    lines = [
        "## Published by their authors, not measured again",
        "",
        "These checkpoints load here (`resnest-seg zoo` lists and fetches them). The figures are their authors': mIoU "
        "in % with one scale, and with several scales and mirrored images, on the validation split.",
        "",
        "| checkpoint | data set | one scale | several |",
        "|---|---|---:|---:|",
    ]
    for known in PUBLISHED:
        if known.head != "classifier":
            figures = [
                f"{value:.2f}" if value is not None else "-" for value in (known.single_scale, known.multi_scale)
            ]
            lines.append(f"| `{known.name}` | {known.dataset} | {' | '.join(figures)} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    head = (
        "# Results\n\n"
        "What this project measured itself, and apart from it what the authors of the checkpoints published. mIoU in "
        "%; of several seeds the mean +- the sample deviation. Every figure stands in a JSON file in `docs/results/`, "
        "from which `python docs/results.py` writes this page; `make results-check` measures the cheapest rows again. "
        "Speed and memory are on the page about [performance](performance.md), small models on [their "
        "own](small_models.md).\n"
    )
    return "\n".join([head, *(rendered(table) for table in tables()), published_table(), ""])


Run = Callable[[Sequence[str]], None]


def resnest_seg(arguments: Sequence[str]) -> None:
    """Run a verb; ends the program if it fails."""
    done = subprocess.run([sys.executable, "-m", "resnest_seg", *arguments], check=False)
    if done.returncode:
        sys.exit(f"resnest-seg {' '.join(arguments)} failed with exit code {done.returncode}.")


def recheck(run: Run = resnest_seg) -> list[str]:
    """Measure the rows again that have a check; returns a line for each that is further off than its tolerance."""
    wrong = []
    for table in tables():
        checked = [row for row in table["rows"] if "check" in row]
        if not checked:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for arguments in table["check"]:
                run([word.replace("{folder}", folder) for word in arguments])
            for row in checked:
                check, words = row["check"], ", ".join(cell for cell in row["cells"].values() if isinstance(cell, str))
                figure: Any = json.loads((Path(folder) / check["file"]).read_text(encoding="utf-8"))
                for key in check["figure"].split("."):
                    figure = figure[key]
                now, before = 100 * figure, row["cells"][check["column"]]
                line = f"{table['title']}: {words}, {check['column']}: {now:.2f}, was {before:.2f}"
                print(f"{line} (tolerance {check['tolerance']:g})", flush=True)
                if abs(now - before) > check["tolerance"]:
                    wrong.append(line)
    return wrong


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or check the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="measure the cheapest rows again")
    if not parser.parse_args(argv).check:
        PAGE.write_text(page(), encoding="utf-8")
        return
    wrong = recheck()
    if wrong:
        sys.exit("\n".join(["These figures are further off than their tolerance:", *wrong]))


if __name__ == "__main__":
    main()
