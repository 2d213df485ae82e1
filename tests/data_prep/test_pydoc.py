"""The demo corpus: prose from source files, without running any."""

from __future__ import annotations

import pytest

from bert_jax.errors import UserError
from data_prep import pydoc
from data_prep.sources import documents

SOURCE = '''
"""A module. {long}"""
raise SystemExit("sources must not be run")
class A:
    """A class.

    {long}

    >>> code(
    ... )
    """
    async def f(self):
        "short"
'''


@pytest.fixture
def small_machine(tmp_path, monkeypatch):
    """One source tree instead of all that is installed."""
    root = tmp_path / "lib"
    (root / "tests").mkdir(parents=True)
    long = "Some words that :func:`explain` what *this* ``thing`` does. " * 8
    (root / "b.py").write_text(SOURCE.replace("{long}", long))
    (root / "a.py").write_text('def g():\n    """Another one. ' + long + '"""')
    (root / "copy.py").write_text((root / "b.py").read_text())
    (root / "broken.py").write_text("def (")
    (root / "warns.py").write_text("x = '\\d'")
    (root / "tests" / "t.py").write_text('"""A test. ' + long + '"""')
    monkeypatch.setattr(pydoc.sysconfig, "get_path", lambda name: str(root))
    return tmp_path


def test_one_document_an_object_in_a_fixed_order_without_duplicates(small_machine):
    out = small_machine / "out.txt"
    count, size = pydoc.write(str(out))
    found = list(documents(out))
    assert (count, size) == (len(found), out.stat().st_size)
    docstrings = found[-3:]
    assert [text.split(".")[0] for text in docstrings] == ["Another one", "A module", "A class"]
    assert docstrings[2].split("\n")[1].startswith("Some words that explain what this thing does.")
    assert not any("test" in text[:10] or "code(" in text for text in docstrings)
    assert len(found) > 50, "the language reference comes first"
    assert min(map(len, found)) >= 200
    first = out.read_bytes()
    pydoc.write(str(out))
    assert out.read_bytes() == first


def test_the_limit_holds(small_machine):
    out = small_machine / "out.txt"
    _, size = pydoc.write(str(out), max_megabytes=0.05)
    assert size == out.stat().st_size <= 50_000


def test_a_place_that_cannot_be_written_is_named(small_machine):
    (small_machine / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        pydoc.write(str(small_machine / "file" / "out.txt"))
