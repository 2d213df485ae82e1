"""Figures of a long benchmark in a JSON file: whoever starts it again goes on behind the last one that stands there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Kept:
    """Figures by name, read from a file if it is there and written after each.

    Args:
        path: the file; None: nothing is kept.
        settings: what all figures were measured with; a file of other ones ends the program.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, json.loads(json.dumps(settings, default=str))
        self._found: dict[str, Any] = {}
        if path is not None and path.is_file():
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["settings"] != self._settings:
                raise SystemExit(f"{path}: measured with {tree['settings']}; name another file")
            self._found = tree["found"]

    def get(self, name: str) -> Any:
        """The figure that is known; None: it is to be measured."""
        return self._found.get(name)

    def put(self, name: str, figure: Any) -> Any:
        """Keep a figure; returned as it was given."""
        self._found[name] = figure
        if self._path is not None:
            temporary = self._path.with_name(f".{self._path.name}")
            temporary.write_text(json.dumps({"settings": self._settings, "found": self._found}, indent=1) + "\n")
            temporary.replace(self._path)
        return figure
