"""How Sphinx builds the site: `make docs` writes it to build/site, strictly; nothing is fetched from the network.

Pages are Markdown in this folder. `reference_pages.py` writes docs/reference/ from the code before each build.
"""

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util import inspect, logging
from sphinx.util.inspect import stringify_signature

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent
sys.path[:0] = [str(PROJECT), str(DOCS)]

import reference_pages  # noqa: E402

import resnest_seg  # noqa: E402

project = "resnest_seg"
author = "the resnest_seg contributors"
copyright = author
version = release = resnest_seg.__version__
REPOSITORY = "https://github.com/resnest-seg/resnest_seg"

extensions = [
    "myst_nb",  # Markdown and notebooks
    "sphinx.ext.autodoc",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
nitpicky = True
needs_sphinx = "8.2"

# Markdown
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # a test runs the notebooks; the site shows the outputs that they hold

# Docstrings
default_role = "literal"  # docstrings mark code by single backticks
DOCSTRINGS = Config(napoleon_numpy_docstring=False, napoleon_use_ivar=True)
autodoc_inherit_docstrings = False  # torch.nn.Module's forward says nothing about ours
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

nitpick_ignore_regex = [
    # The site is built without the network, so types of other projects have no page to link to.
    (r"py:.*", r"(torch|torchvision|numpy|np|nn|PIL|cv2|albumentations|matplotlib|starlette)\..*"),
    (r"py:.*", r"(collections|pathlib|typing|datetime|os|types|argparse|enum|io|xml|zipfile)\..*"),
    (r"py:class", r"(Axes|Module|NDArray|Path|Starlette|Tensor)"),  # the same, by their short names
    # Unions, callables, protocols and type variables, which annotations name and no page describes.
    (r"py:class", r"(.*\.)?(AnyConfig|B|Grid|Indexable|Labeller|Loss|Network|OwnOptimizer|Photo|PixelModel)"),
    (r"py:class", r"(.*\.)?(Place|Rings|Texts|Transform)"),
]

# Pages
html_theme = "furo"
html_title = f"resnest_seg {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # browsers refuse to read other pages of file://
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": [],
}

OUTSIDE = re.compile(r"(\]\()((?:\.\./)+[^)\s#]*)(#[^)\s]*)?\)")
"""A Markdown link that leaves the page's folder."""


def link_to_repository(text: str, folder: Path, report: logging.SphinxLoggerAdapter | None) -> str:
    """Replace links to files outside docs/ by addresses of the repository, where a reader of the site finds them.

    Args:
        text: A page.
        folder: The folder that its links are relative to.
        report: Where a link to a file that does not exist is reported; it is left as it is.
    """

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(DOCS) or not target.is_relative_to(PROJECT):
            return match[0]
        if not target.exists():
            if report is not None:
                report.warning("%s: no such file in the repository: %s", folder.name, match[2])
            return match[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{match[1]}{REPOSITORY}/{kind}/main/{target.relative_to(PROJECT).as_posix()}{match[3] or ''})"

    return OUTSIDE.sub(replaced, text)


def with_links(text: str, links: dict[str, str]) -> str:
    """Link config keys and public names that stand in a page's text as code, but for fences and the text of links."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    code = re.compile(r"(?<![`\[}\w])`([\w.]+)`(?![`\]])")
    return "".join(
        part if part.startswith("```") else code.sub(lambda match: links.get(match[1], match[0]), part)
        for part in parts
    )


def read_page(app: Sphinx, name: str, content: list[str]) -> None:
    """Prepare the text of a page, before it is parsed."""
    folder = Path(app.env.doc2path(name)).parent
    if not name.startswith("reference/"):
        content[0] = link_to_repository(content[0], folder, logging.getLogger(__name__))
        if app.env.doc2path(name).suffix == ".md":
            content[0] = with_links(content[0], reference_pages.links())


def read_included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Prepare the text of an included file, whose links are relative to its own folder."""
    folder = (DOCS / path).resolve().parent
    text = re.sub(r"\]\((?!\w+:|#|\.\./)", "](../" + folder.name + "/", content[0]) if folder != PROJECT else content[0]
    content[0] = link_to_repository(text, DOCS, logging.getLogger(__name__))


def read_docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Turn a Google style docstring into reStructuredText.

    This is what the extension napoleon does, but it takes words before a colon for a type: in the docstring of a
    property, and in the first line below "Returns:". Here, types are annotations.
    """
    for number in reversed(range(len(lines))):
        if lines[number].strip() in ("Returns:", "Yields:"):
            indent = len(lines[number]) - len(lines[number].lstrip())
            lines.insert(number + 1, " " * (indent + 4) + ":")
    what = "method" if what == "property" else what
    lines[:] = GoogleDocstring(lines, DOCSTRINGS, app, what, name, thing, options).lines()


def read_signature(
    app: Sphinx, what: str, name: str, thing: Any, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Give the signature of `__init__` where a base class hides it: the hub's `__new__`, and that of protocols."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    if getattr(thing, "_is_protocol", False):
        return "", returns
    return stringify_signature(inspect.signature(thing.__init__, bound_method=True), show_annotation=False), returns


def write_reference(app: Sphinx) -> None:
    """Write the pages of the reference."""
    reference_pages.write(DOCS / "reference")


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("builder-inited", write_reference)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
