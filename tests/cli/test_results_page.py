"""docs/results.md is what docs/results.py writes from the JSON files, and its cheapest rows can be measured again."""

import importlib.util
import json
import statistics
from pathlib import Path

import pytest
from conftest import PROJECT


@pytest.fixture
def results():
    """The script docs/results.py."""
    spec = importlib.util.spec_from_file_location("results_page", PROJECT / "docs" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_files_say(results):
    assert results.page() == results.PAGE.read_text(encoding="utf-8"), "python docs/results.py"


def test_every_row_says_how_it_was_measured(results):
    for table in results.tables():
        for row in table["rows"]:
            assert set(row["cells"]) == set(table["columns"]), row
            known = {key: row.get(key, table.get(key)) for key in results.ORIGINS}
            assert known["command"], row
            assert known["machine"], row
            assert known["commit"], row
            for cell in row["cells"].values():
                assert not isinstance(cell, list) or len(cell) == len(known["seeds"]), row


def test_of_several_seeds_the_page_has_mean_and_deviation(results):
    values = [39.69, 40.45, 41.76]
    assert results.shown(values) == f"{sum(values) / 3:.2f} +- {statistics.stdev(values):.2f}"
    assert results.shown([1.0]) == "1.00"
    assert results.shown(None) == "-"


def rechecked(results, share):
    """What a check finds whose every command writes `share` as every score."""

    def run(arguments):
        if arguments[0] == "eval":
            scores = {name: {"mean_iou": share} for name in ("whole", "encoding")}
            Path(arguments[arguments.index("--output") + 1]).write_text(json.dumps({"scores": scores}))

    return results.recheck(run)


def test_rows_further_off_than_their_tolerance_are_named(results):
    checked = [row for table in results.tables() for row in table["rows"] if "check" in row]
    assert len(checked) == 3
    assert len(rechecked(results, 0.3)) == 3
    kept = checked[0]["cells"][checked[0]["check"]["column"]]
    names = rechecked(results, (kept + 0.9 * checked[0]["check"]["tolerance"]) / 100)
    assert not any(f"was {kept:.2f}" in line for line in names)


def test_a_verb_that_fails_ends_the_check(results):
    with pytest.raises(SystemExit, match="resnest-seg train --dataset nothing failed with exit code 2"):
        results.resnest_seg(["train", "--dataset", "nothing"])
