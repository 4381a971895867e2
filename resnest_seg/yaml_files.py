"""Safe reading of YAML: no code, no duplicate keys, no depth without end. Alone here, as not every user has PyYAML."""

from __future__ import annotations

from typing import Any

import yaml

from resnest_seg.errors import ConfigError

DEEPEST = 50
"""Maximum nesting of lists and mappings in a file."""


def load_yaml(text: str, name: str) -> Any:
    """Parse a YAML document to mappings, lists, strings, numbers, booleans and None.

    Args:
        text: The document.
        name: Its name in error messages.

    Raises:
        ConfigError: The text is not YAML, a mapping has a duplicate key (the message names both lines), or it is
            nested more than `DEEPEST` levels deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:
        # Not only YAMLError: PyYAML parses `!!bool x` and 2026-13-45 without validation.
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None


class _Loader(yaml.SafeLoader):
    """Loader that rejects duplicate keys and deep nesting; PyYAML's keeps the last key and recurses without limit."""

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
        # Here and not in the constructor, where the keys of `<<: *other` have been merged.
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line, content = key.start_mark.line + 1, (key.tag, key.value)
            if content in lines:
                raise yaml.YAMLError(
                    f"duplicate key {key.value!r} on lines {lines[content]} and {line}, and only one of them would "
                    "count: merge the two, or delete one"
                )
            lines[content] = line
        return node
