"""docs/text.md, from what ``text`` and ``wide`` have kept."""

from typing import Any


def write(text: dict[str, Any], wide: dict[str, Any]) -> None:
    """The page."""
