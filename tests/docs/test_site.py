"""The site is built without a warning, its links lead somewhere, and its search works without a network."""

import html.parser
import importlib.util
import json
import re
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
from support import browser
from test_house import PROJECT

import resnest_seg
from resnest_seg.cli.main import VERBS
from resnest_seg.config import PretrainConfig, RunConfig, config_keys

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("sphinx", "furo", "myst_nb")),
        reason="sphinx, furo or myst-nb is not installed: pip install 'resnest-seg[docs]'",
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, built as `make docs` does; only the places of its files are others."""
    folder = tmp_path_factory.mktemp("site")
    (rule,) = re.findall(r"^docs:.*\n\t\$\(BIN\)/python (-m sphinx.*) -d \S+ docs \S+$", MAKEFILE, re.M)
    done = subprocess.run(
        [sys.executable, *rule.split(), "-d", str(folder / "doctrees"), "docs", str(folder / "site")],
        cwd=PROJECT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder / "site"


MAKEFILE = (PROJECT / "Makefile").read_text(encoding="utf-8")


class Links(html.parser.HTMLParser):
    """What a page refers to, and the names of its places."""

    def __init__(self, text):
        super().__init__()
        self.targets, self.places = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.targets += [found[name] for name in ("href", "src") if found.get(name)]
        self.places |= {found[name] for name in ("id", "name") if found.get(name)}


@pytest.fixture(scope="module")
def pages(site):
    """Path of every page -> its links."""
    return {path.resolve(): Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(site, pages):
    broken = []
    for path, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            lost = parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].places
            if not file.is_file() or (lost and parts.fragment != ""):
                broken.append(f"{path.relative_to(site.resolve())}: {target}")
    assert broken == []
    assert len(pages) > 25


def test_links_that_leave_the_site_name_files_of_the_repository(pages):
    address = "https://github.com/resnest-seg/resnest_seg/"
    for path, links in pages.items():
        for target in links.targets:
            found = re.fullmatch(re.escape(address) + r"(?:blob|tree)/main/([^#]*)(?:#.*)?", target)
            assert found is None or (PROJECT / found[1]).exists(), f"{path.name}: {target}"


def test_no_page_loads_anything_from_elsewhere(site):
    for path in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(https?:[^"]*)"', path.read_text("utf-8"))
        assert [address for address in loaded if "github.com/resnest-seg" not in address] == [], path.name


@pytest.mark.parametrize("word", ["dilat", "checkpoint", "pretrain"])
def test_the_search_index_finds(site, word):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").rstrip(";").removesuffix(")"))
    found = index["terms"].get(word, index["titleterms"].get(word))
    assert found is not None
    assert index["docnames"]


def test_the_search_works_from_a_folder(site, chromium):
    with browser.visit(chromium, f"file://{site}/search.html?q=shard_window") as visit:
        visit.page.locator("ul.search a").first.wait_for()
        targets = visit.page.locator("ul.search a").evaluate_all(
            "links => links.map(link => link.getAttribute('href'))"
        )
    assert any(target.startswith("reference/config.html") for target in targets), targets
    assert visit.errors == visit.outside() == []


@pytest.mark.parametrize("name", ["index", "architecture", "reference/config", "reference/api_inference"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_in_a_browser(site, chromium, name, width):
    with browser.visit(chromium, f"file://{site}/{name}.html", width=width) as visit:
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.errors == visit.outside() == []


def test_every_config_key_is_described_once(pages, site):
    page = (site / "reference" / "config.html").read_text(encoding="utf-8")
    keys = re.findall(r'id="confval-([^"]+)"', page)
    assert len(keys) == len(set(keys))
    wanted = {*config_keys(RunConfig), *config_keys(PretrainConfig)}
    assert {key.replace("_", "-") for key in wanted} == {key.replace("_", "-") for key in keys}
    assert all(page.count(f">{key}</span></span><a ") == 1 for key in wanted)


def test_every_verb_and_every_public_name_has_its_place(site):
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f'<section id="{verb}">' in commands, verb
        assert f"usage: resnest-seg {verb}" in commands, verb
    names = (site / "reference" / "api.html").read_text(encoding="utf-8")
    for name in resnest_seg.__all__:
        assert re.search(rf'<a class="reference internal" href="api_\w+\.html#[^"]*\.{name}"', names), name


def test_keys_and_names_in_a_page_are_links_but_not_in_its_code(site):
    page = (site / "howto" / "own_data.html").read_text(encoding="utf-8")
    assert '<a class="reference internal" href="../reference/config.html#confval-data.crop_size"' in page
    parts = (site / "howto" / "own_parts.html").read_text(encoding="utf-8")
    assert 'href="../reference/api_training.html#resnest_seg.training.assembly.fit"' in parts
    for text in (page, parts):
        for block in re.findall(r"<pre>.*?</pre>", text, re.S):
            assert "confval" not in block
            assert "<a " not in block
