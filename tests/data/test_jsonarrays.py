"""`gradmm.data.jsonarrays`: an array becomes its objects, whatever the blocks in which it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.data import jsonarrays
from gradmm.data.jsonarrays import as_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a"\\\n]},[{é')),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), max_size=5),
    indent=st.sampled_from([None, 1]),
    block=st.integers(1, 40),
)
@settings(max_examples=80, deadline=None)
def test_the_lines_are_the_objects(
    rows: list[dict[str, object]], indent: int | None, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("json")
    (folder / "x.json").write_text("\n" * (indent or 0) + json.dumps(rows, indent=indent, ensure_ascii=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonarrays, "_BLOCK", block + 1)
        lines = as_lines(folder / "x.json", folder)
    assert lines != folder / "x.json"
    assert [json.loads(line) for line in lines.read_bytes().splitlines()] == rows


@pytest.mark.parametrize(
    "content",
    [
        *("", '{"a": 1}', '{"a": 1}\n{"a": 2}', '["a"]', '[{"a": 1} {"a": 2}]', '[{"a": 1}'),
        *('[{"a": 1},]', '[,{"a": 1}]', '[{"a": 1}] x', '[{"a": 1}, 2]', '[{"a" 1}]'),
    ],
)
def test_anything_else_is_left_to_its_reader(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    assert as_lines(tmp_path / "x.json", tmp_path) == tmp_path / "x.json"


def test_bytes_that_are_not_utf_8_are_left_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'[{"a": "\xff"}]')
    assert as_lines(tmp_path / "x.json", tmp_path) == tmp_path / "x.json"
