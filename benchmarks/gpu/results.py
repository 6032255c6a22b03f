"""What a part of `run.sh` has found so far: a JSON file, whole after every entry."""

import json
import os
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
# The scripts beside this folder, and the package.
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]


class Results:
    """Entries by name, read back by a later call, which does only what is missing."""

    def __init__(self, path: pathlib.Path, toy: bool):
        """Reads what an earlier call left; of a rehearsal (``toy``) for a rehearsal alone."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.found: dict[str, Any] = {"toy": toy}
        if path.exists():
            before = json.loads(path.read_text())
            if before["toy"] == toy:
                self.found = before

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, value: Any) -> None:
        """Keeps an entry, and prints it."""
        self.found[name] = value
        self._write()
        print(f"{self._path.stem}: {name}: {json.dumps(value)}", flush=True)

    def finish(self) -> None:
        """Says that nothing is missing."""
        self.found["done"] = True
        self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.found, indent=1) + "\n")
        os.replace(temporary, self._path)
