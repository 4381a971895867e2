"""About sixty bad inputs to all tools, a part of tests/campaigns/bad_inputs.py, which has many more."""

import json
import subprocess
import sys

import pytest
from campaigns.bad_cases import QUICK
from conftest import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Name of a case -> what became of it; one process runs them all, since it forks and must not have computed."""
    report = tmp_path_factory.mktemp("campaign") / "report.json"
    command = [sys.executable, PROJECT / "tests/campaigns/bad_inputs.py", "--quick", "--json", report]
    done = subprocess.run(command, capture_output=True, text=True)
    assert report.exists(), done.stderr
    found = json.loads(report.read_text())
    assert (done.returncode == 1) == any(outcome["faults"] for outcome in found), done.stdout
    return {outcome["name"]: outcome for outcome in found}


@pytest.mark.long
@pytest.mark.parametrize("name", QUICK)
def test_a_bad_input_is_refused_or_told(name, outcomes):
    """By the right exit code and a message that names it; without a traceback, and without a change to other files."""
    outcome = outcomes[name]
    assert not outcome["faults"], f"{outcome['missing']} {outcome['changed']}\n{outcome['text'][-3000:]}"
    assert outcome["code"] is not None
