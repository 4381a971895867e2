"""Write the measurements of `resnest-seg benchmark models` into small_models.md and the headers of the configs.

resnest-seg benchmark models --config $(python docs/small_models.py) --size 360 480 --json small_models.json
python docs/small_models.py small_models.json "two shared cores, load 0.2"
"""

import json
import re
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).with_name("small_models.md")
CONFIGS = Path(__file__).parents[1] / "configs"
RUNTIMES = ("torch", "onnxruntime", "int8", "OpenVINO")
START, END = "<!-- measured -->\n", "<!-- end -->\n"


def small_models() -> list[str]:
    """Names of the configs of small models, in the order of the table: those that take fewer operations first."""
    found = {}
    for path in CONFIGS.glob("*.yaml"):
        size = re.search(r"^# Size: .* parameters, ([\d.]+) GMAC", path.read_text(encoding="utf-8"), re.M)
        if size is not None:
            found[path.stem] = float(size[1])
    return sorted(found, key=found.__getitem__)


def cells(rows: list[dict], key: str) -> list[str]:
    """A figure of one model in all runtimes, without digits behind the point."""
    by_runtime = {row["runtime"]: row for row in rows}
    return [f"{by_runtime[name][key]:.0f}" if name in by_runtime else "-" for name in RUNTIMES]


def speed(rows: list[dict], where: str) -> str:
    """The lines of a config's header."""
    time, memory = cells(rows, "milliseconds"), cells(rows, "peak_mebibytes")
    text = (
        f"{time[0]} ms in torch, {time[1]} in onnxruntime, {time[2]} there in 8 bits, {time[3]} in OpenVINO; "
        f"memory above the opened model {memory[0]}, {memory[1]}, {memory[2]} and {memory[3]} MiB ({where})."
    )
    lines = textwrap.wrap(text, 120 - len("# Speed:      "))
    return "\n".join(("# Speed:      " if not number else "#             ") + line for number, line in enumerate(lines))


def table(measured: dict[str, list[dict]]) -> str:
    """The table of the page."""
    runtimes = "torch | onnxruntime | 8 bits | OpenVINO"
    lines = [f"| config | M parameters | GMAC | ms: {runtimes} | MiB: {runtimes} |", "|---|" + "---:|" * 10]
    for name, rows in measured.items():
        size = [f"{rows[0]['parameters_m']:.2f}", f"{rows[0]['gmacs']:.2f}"]
        figures = [*size, *cells(rows, "milliseconds"), *cells(rows, "peak_mebibytes")]
        lines.append(f"| `{name}` | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main(report: str, where: str) -> None:
    """Write what a report of the benchmark says, measured `where`."""
    rows = json.loads(Path(report).read_text(encoding="utf-8"))["measurements"]
    measured = {name: [row for row in rows if row["name"] == name] for name in small_models()}
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(START)
    PAGE.write_text(f"{before}{START}\nMeasured on: {where}.\n\n{table(measured)}{END}{rest.partition(END)[2]}",
                    encoding="utf-8")  # fmt: skip
    for name, of_model in measured.items():
        path = CONFIGS / f"{name}.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"# Speed:(?s:.*?)(?=\n# Takes:)", speed(of_model, where), text), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(*sys.argv[1:])
    else:
        print(" ".join(small_models()))
