"""Which modules a folder would provide as the first entry of the path.

User code may have a `json.py` or `utils/` of its own. A plain interpreter would import that one; so
whoever has imported another module of that name already must not run the code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def modules_in(folder: str) -> set[str]:
    """Return the top-level module names in `folder`; empty if it cannot be read."""
    names = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, _, rest = entry.name.partition(".")
                is_module = rest == "py" or rest.endswith(("so", "pyd"))
                inside = os.path.join(entry.path, "__init__.py")
                if is_module or (not rest and os.path.isfile(inside)):
                    names.add(stem)
    except OSError:
        return set()
    return names


def first_folder(argv: list[str], cwd: str) -> str:
    """Return the folder that `python ARGV`, started in `cwd`, searches first."""
    cwd = cwd or os.getcwd()
    if not argv or argv[0] in ("-m", "-c"):
        return cwd
    return os.path.dirname(os.path.realpath(os.path.join(cwd, argv[0])))


def shadowed(folder: str, loaded: Iterable[str]) -> list[str]:
    """Return the modules of `folder` that are loaded from elsewhere, sorted."""
    here = os.path.realpath(folder)
    names = {name for name in loaded if "." not in name} - {"__main__"}
    found = []
    for name in sorted(modules_in(folder) & names):
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        if not os.path.realpath(file).startswith(os.path.join(here, "")):
            found.append(name)
    return found
