"""YAML as PyYAML reads it, but for repeated keys and depths without end."""

import pytest
import yaml

from resnest_seg.errors import ConfigError
from resnest_seg.yaml_files import DEEPEST, load_yaml


@pytest.mark.parametrize(
    "text",
    ["", "a", "[1, 2.5, no, null, 'x']", "a: 1\nb: {a: 1, b: [a, a]}\n", "a: &x {b: 1}\nc: {<<: *x, b: 2}\n",
     "- a: 1\n- a: 2\n", "1: x\n'1': y\n", "? !!str z\n: z\n"],
)  # fmt: skip
def test_it_reads_what_a_plain_loader_reads(text):
    assert load_yaml(text, "x") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "first", "second", "key"),
    [
        ("optim:\n  lr: 1\ntrain: {}\noptim:\n  momentum: 0\n", 1, 4, "optim"),
        ("optim:\n  lr: 1\n  'lr': 2\n", 2, 3, "lr"),
        ("- {name: a, name: b}", 1, 1, "name"),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2, b: 3}\n", 2, 2, "b"),
    ],
)
def test_a_repeated_key_is_refused_with_both_lines(text, first, second, key):
    with pytest.raises(ConfigError, match=f"mine.yaml .*duplicate key '{key}' on lines {first} and {second},"):
        load_yaml(text, "mine.yaml")


def test_depth_has_an_end():
    assert load_yaml("[" * (DEEPEST - 1) + "1" + "]" * (DEEPEST - 1), "x")
    for text in ("[" * 5000, "{a: " * 5000, "- " * 5000 + "x"):
        with pytest.raises(ConfigError, match=f"deep.yaml .*line 1 is nested more than {DEEPEST} levels"):
            load_yaml(text, "deep.yaml")


@pytest.mark.parametrize(
    "text",
    ["a: [", "!!python/object:os.system x", "!!bool x", "2026-13-45", "!!int ''", "!!timestamp x", "a\0b",
     "a: 1\n---\nb: 2", "&a [*a", "{[1]: 2}", "{*a : 1}", "1" * 5000],
)  # fmt: skip
def test_what_is_no_yaml_is_a_message(text):
    with pytest.raises(ConfigError, match=r"^bad\.yaml is not valid YAML: "):
        load_yaml(text, "bad.yaml")
