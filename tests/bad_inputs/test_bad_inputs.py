"""Every bad input ends with a message of its own and exit code 1 or 2: never with a traceback, never with a mess.

The tables: `bad_commands.py` (command lines, settings, tasks), `bad_files.py` and `bad_rows.py` (data),
`bad_models.py` (models, what does not fit them, run folders); what a row is says `bad_table.py`.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from bad_commands import COMMANDS
from bad_files import FILES
from bad_models import MODELS
from bad_rows import ROWS
from bad_table import HERE, TINY, Bad
from command_line import Run

pytestmark = pytest.mark.usefixtures("own_folder")
TABLE = COMMANDS + FILES + ROWS + MODELS
PARAMS = [pytest.param(bad, id=bad.name) for bad in TABLE]
REMEDY = re.compile(
    r"; |should be|[Gg]ive |install |did you mean|known:|must hold|copy |lists what there is|exceeds|is a value"
)


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


def matches(told: str | re.Pattern[str], message: str) -> bool:
    return told == message if isinstance(told, str) else told.fullmatch(message) is not None


@pytest.mark.parametrize("bad", PARAMS)
def test_a_bad_input_is_told(bad: Bad, run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    for name, content in bad.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    before = contents(tmp_path)
    code, *said = run(*(word.replace(TINY, str(tiny_folder)) for word in shlex.split(bad.args)))
    out, err = (text.replace(str(tiny_folder), TINY).replace(str(tmp_path), HERE) for text in said)

    assert (code, contents(tmp_path)) == (bad.code, before)
    assert "Traceback" not in out + err
    if bad.finding:
        failed = [line for line in out.splitlines() if line.startswith("FAIL")]
        start = f"FAIL  {bad.finding:<12} "
        assert (err, [line[: len(start)] for line in failed]) == ("", [start])
        message = failed[0].removeprefix(start)
    else:
        assert out == ""
        assert (err[:7], err[-1:], len(re.findall("^error: ", err, re.M))) == ("error: ", "\n", 1)
        message = err.removeprefix("error: ").removesuffix("\n")
    assert matches(bad.told, message), message
    assert REMEDY.search(message), message


def test_every_bad_input_is_told_apart() -> None:
    assert len(TABLE) >= 120
    assert {bad.code for bad in TABLE} == {1, 2}
    told = Counter((bad.finding, bad.told if isinstance(bad.told, str) else bad.told.pattern) for bad in TABLE)
    assert [message for message, count in told.items() if count > 1] == []
    names = Counter(bad.name for bad in TABLE)
    assert [name for name, count in names.items() if count > 1] == []


def test_a_text_under_two_labels_is_a_warning_with_the_count(run: Run) -> None:
    Path("rows.csv").write_text("text,label\na film,0\na film,1\nanother,0\nanother,1\na third,1\n")
    code, out, err = run("generate", "-d", "rows.csv", "-t", "sst2", "-m", "./nope")
    warning, error = err.splitlines()
    assert (code, out, error[:26]) == (1, "", "error: no model folder at ")
    assert warning == (
        "rows.csv: 2 of the texts stand under more than one label, such as that of rows 0 and 1 (counted from 0); "
        "see whether their labels are right"
    )


def test_a_row_of_100_megabytes_is_told(run: Run, tiny_folder: Path) -> None:
    with Path("rows.jsonl").open("wb") as file:
        file.write(b'{"text": "a film", "label": 0}\n{"text": "')
        for _ in range(100):
            file.write(b"a film. " * (1 << 17))
        file.write(b'", "label": 1}\n')
    code, out, err = run("generate", "-d", "rows.jsonl", "-t", "sst2", "-m", str(tiny_folder))
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"error: rows\.jsonl, row 1 \(counted from 0\): text has more than \d+ tokens, but the model's context of "
        r"128 leaves room for 125: '(a film\. ){7}a fi'\.\.\.; shorten or drop such rows, .*\n",
        err,
    )
