"""Which saves are waited with because more may follow."""

from __future__ import annotations

from pathlib import Path

import pytest

from kserve_local.devloop.loop import is_several


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), False),
        (("model.py",), False),
        (("model.py", "words.py"), True),
        (("model.py", "service.yaml"), True),
        (("old.py", "new.py"), True),
        (("folder", "model.py"), True),
        # What editors and sed write before they put it in the file's place.
        (("model.py", "model.py.tmp"), False),
        (("model.py", "sedq1w2e3"), False),
        (("model.py", ".model.py.x7Yz"), False),
    ],
)
def test_one_file_that_is_put_in_place_of_another_is_not_several(
    tmp_path: Path, names: tuple[str, ...], expected: bool
):
    """An edit is live without the wait for the rest of a checkout."""
    (tmp_path / "folder").mkdir()
    assert is_several(frozenset(tmp_path / name for name in names)) is expected
