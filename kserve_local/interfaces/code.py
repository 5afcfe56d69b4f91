"""Values of a code reload: what was saved, and what became of it in a running container.

The dev loop decides (`devloop.code_change`), a backend carries it to the container's Python
processes (`podlauncher.control`), which check it against what they really run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CodeChange:
    """New functions for code that runs, while its data stays.

    Args:
        id: Names this change between check and commit.
        before, after: Source text by path relative to the folder of the code, of each file that
            changed: as it was loaded, and as it is to be.
        functions: Qualified names by path (`{"model.py": ("Model.predict",)}`) of what differs,
            for people; where functions only moved to other lines, none.
    """

    id: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    functions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CodeVerdict:
    """What the processes of one container say of a change.

    Args:
        refused: Why it cannot be put into them, for people; empty: it can, or was.
        processes: How many answered; one that has not loaded the files has no function of them.
        functions: How many functions were, or would be, replaced or added in all of them. Those
            that only moved to other lines count.
    """

    refused: str = ""
    processes: int = 0
    functions: int = 0
