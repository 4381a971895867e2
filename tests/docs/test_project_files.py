"""What the project says about itself to the world is true: citation, contributing, workflow, templates."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from test_house import PROJECT

import resnest_seg

TEXTS = ("CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md")
SCHEMAS = {
    "CITATION.cff": "citation-file-format",
    ".github/workflows/ci.yml": "github-workflows",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/idea.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/scores.yml": "github-issue-forms",
}


def read(name):
    return (PROJECT / name).read_text(encoding="utf-8")


def make_targets():
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_has_the_form_that_its_reader_expects(name, tmp_path):
    pytest.importorskip("check_jsonschema", reason="pip install 'resnest-seg[dev]'")

    def check(path):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{SCHEMAS[name]}", path]
        return subprocess.run(command, capture_output=True, text=True)

    assert check(PROJECT / name).returncode == 0, check(PROJECT / name).stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(re.sub(r"^(name|message|jobs|contact_links):", "unknown_key:", read(name), flags=re.M))
    assert check(wrong).returncode == 1


def test_the_folder_of_templates_has_no_other_files():
    assert {str(path.relative_to(PROJECT)) for path in (PROJECT / ".github/ISSUE_TEMPLATE").iterdir()} <= set(SCHEMAS)


def test_the_citation_is_of_this_version_and_license():
    citation, project = yaml.safe_load(read("CITATION.cff")), tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["version"] == resnest_seg.__version__
    assert citation["license"] == project["license"]
    assert citation["repository-code"] == project["urls"]["Homepage"]


def test_the_workflow_runs_commands_of_the_makefile_on_every_supported_python():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = [re.fullmatch(r"make(?: [A-Z]+=\w+)* ([a-z-]+)", command)[1] for command in commands]
    assert sorted(targets) == ["docs", "lint", "test", "test-long"]
    assert {"make lint", "make test", "make test-long"} <= set(read(".ci/run").splitlines())
    assert set(targets) <= make_targets()
    classifiers = tomllib.loads(read("pyproject.toml"))["project"]["classifiers"]
    supported = [name.rsplit(" ", 1)[1] for name in classifiers if re.search(r":: 3\.\d+$", name)]
    assert workflow["jobs"]["check"]["strategy"]["matrix"]["python"] == supported
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())


@pytest.mark.parametrize("name", TEXTS)
def test_files_commands_and_names_of_a_text_exist(name):
    text = read(name)
    folders = "resnest_seg|tests|configs|datasets|docs|examples|tools"
    paths = {
        path for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.-]*)", text) if not re.search("[A-Z]{4}", path)
    }
    assert [path for path in paths if not (PROJECT / path.rstrip(".")).exists()] == []
    targets = re.findall(r"make ([a-z-]+)(?=`|\s+#)", text)
    assert set(targets) <= make_targets()
    for constant, path in re.findall(r"`([A-Z]+)`\s+in\s+`(resnest_seg/[\w/]+\.py)`", text):
        assert re.search(rf"^{constant}\b", read(path), re.M), f"{constant} in {path}"
    assert targets or name == "SECURITY.md"


def test_contributing_names_the_tables_of_choices():
    found = re.findall(r"`([A-Z]+)`\s+in\s+`resnest_seg/", read("CONTRIBUTING.md"))
    assert set(found) == {"SPECS", "PUBLISHED", "DATASETS", "READERS"}
