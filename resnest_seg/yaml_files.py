"""Reading YAML files without losing what they say: a repeated key is an error and not the end of the first one."""

from __future__ import annotations

from typing import Any

import yaml

from resnest_seg.errors import ConfigError

DEEPEST = 50
"""Levels of lists and mappings inside each other that a file may have."""


def load_yaml(text: str, name: str) -> Any:
    """The value that a YAML document holds: mappings, lists, strings, numbers, booleans and None.

    Args:
        text: The document.
        name: What errors call it.

    Raises:
        ConfigError: It is no YAML, a mapping has a key twice (names both lines), or it is nested more than `DEEPEST`
            levels deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # Not only YAMLError: PyYAML takes `!!bool x` and 2026-13-45 apart without looking.
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's own keeps the last of a repeated key without a word, and recurses as deep as the file goes."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if parent is not None and self._depth > DEEPEST:
            line = parent.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} is nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        # Here and not in the constructor, where the keys of `<<: *other` have been added.
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, content = key.start_mark.line + 1, (key.tag, key.value)
            if content in lines:
                raise yaml.YAMLError(
                    f"the key {key.value!r} stands on line {lines[content]} and again on line {line}, and only one of "
                    "them would count: join the two, or delete one"
                )
            lines[content] = line
        return node
