"""What is printed is text: nothing in it is markup, and nothing steers the terminal."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from gradmm.doctor import Finding
from gradmm.found import Written
from gradmm.present import printable, show_findings, show_measures, show_result, show_texts
from gradmm.result import Result, make_dataset

NASTY = {
    "a\x1b[31mred\x1b[0m": r"a\x1b[31mred\x1b[0m",
    "bell\x07 back\x08 null\x00": r"bell\x07 back\x08 null\x00",
    "two\nlines\r\ttab": r"two\nlines\r\ttab",
    "c1 \x9b31m": r"c1 \x9b31m",
    "bidi \u202egnp.exe\u2066 \u061c": r"bidi \u202egnp.exe\u2066 \u061c",
    "zero\u200bwidth \ufeff": r"zero\u200bwidth \ufeff",
    "tag \U000e0041": r"tag \U000e0041",
    "[bold]not[/bold] [link=https://x.y]z[/link] [/]": "[bold]not[/bold] [link=https://x.y]z[/link] [/]",
    ":smile: is no picture": ":smile: is no picture",
    "café 電影 ☕ \\n 'quoted'": "café 電影 ☕ \\n 'quoted'",
}
MEASURES = {"distance": 0.01234, "log_perplexity": 4.567, "distinct_2": 0.987}


def printed(show: Any, *args: Any, width: int = 200, **options: Any) -> str:
    file = io.StringIO()
    show(Console(file=file, width=width, **options), *args)
    return file.getvalue()


def result_of(texts: list[list[str]], names: tuple[str, ...] = ("a", "b"), run_dir: Path | None = None) -> Result:
    nll = [[1.0] * len(own) for own in texts]
    own = {**MEASURES, "texts": sum(map(len, texts)), "retokenised_differently": 0}
    metrics = {
        "solver": "admm",
        "synthetic": own,
        "steps": {},
        "references": {"real": {**MEASURES, "texts": 3}},
    }
    written = [[Written(text, "admm") for text in own] for own in texts]
    return Result(make_dataset(names, written, (0.0,) * len(names), nll), metrics, run_dir)


# ---- texts


@pytest.mark.parametrize(("text", "shown"), NASTY.items())
def test_printable_writes_control_out_and_leaves_the_rest(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
def test_printable_holds_no_control(text: str) -> None:
    shown = printable(text)
    assert not any(unicodedata.category(char)[0] == "C" for char in shown)
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_texts_and_names_come_out_literally() -> None:
    names = ("[red]bad[/red]", "good\x1b[2J")
    out = printed(show_texts, result_of([list(NASTY), ["fine"]], names))
    lines = out.split("\n")
    assert lines == ["[red]bad[/red]", *[f"  {shown}" for shown in NASTY.values()], r"good\x1b[2J", "  fine", ""]


def test_a_terminal_gets_no_code_but_the_consoles_own() -> None:
    out = printed(show_texts, result_of([list(NASTY), ["fine"]]), force_terminal=True, color_system="standard")
    assert out.startswith("\x1b[1ma\x1b[0m\n")
    for code in ("\x1b[1ma\x1b[0m\n", "\x1b[1mb\x1b[0m\n"):
        assert out.count(code) == 1
        out = out.replace(code, "")
    assert "\x1b" not in out
    assert all(f"  {shown}\n" in out for shown in NASTY.values())


def test_a_long_text_stays_on_one_line() -> None:
    text = "word " * 100 + "end"
    assert f"  {text}\n" in printed(show_texts, result_of([[text], ["x"]]), width=40)


def test_what_is_left_out_is_counted() -> None:
    texts = [["one", "two", "three"], ["four", "five"]]
    out = printed(lambda console, result: show_texts(console, result, per_class=2), result_of(texts))
    assert out == "a\n  one\n  two\n  ... and 1 more\nb\n  four\n  five\n"
    assert printed(show_texts, result_of(texts)) == "a\n  one\n  two\n  three\nb\n  four\n  five\n"


# ---- figures


def test_the_table_has_a_row_for_every_set() -> None:
    metrics = result_of([["x"], ["y"]]).metrics
    metrics["references"]["lm"] = {**MEASURES, "distance": 0.5, "texts": 4}
    rows = [line for line in printed(show_measures, metrics).splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["synthetic texts", "2", "0.0123", "4.57", "99%"],
        ["real rows", "3", "0.0123", "4.57", "99%"],
        ["LM samples", "4", "0.5000", "4.57", "99%"],
    ]


@pytest.mark.parametrize(
    ("solver", "steps", "told"),
    [
        ("admm", {}, "LM samples 0.5000 / 4.57, ADMM 0.0123 / 4.57"),
        ("search", {"selected": 0.1}, "LM samples 0.5000 / 4.57, selected 0.1000 / 4.57, refined 0.0123 / 4.57"),
        ("search", {}, "LM samples 0.5000 / 4.57, selected 0.0123 / 4.57"),
        ("search", {"formed": 0.3}, "LM samples 0.5000 / 4.57, in the form 0.3000 / 4.57, selected 0.0123 / 4.57"),
        (
            "both",
            {"admm": 0.2, "selected": 0.1},
            "LM samples 0.5000 / 4.57, ADMM 0.2000 / 4.57, selected 0.1000 / 4.57, refined 0.0123 / 4.57",
        ),
    ],
)
def test_a_line_says_what_every_step_bought(solver: str, steps: dict[str, float], told: str) -> None:
    metrics = result_of([["x"], ["y"]]).metrics | {"solver": solver}
    metrics["references"]["lm"] = {**MEASURES, "distance": 0.5, "texts": 4}
    metrics["steps"] = {name: {**MEASURES, "distance": distance} for name, distance in steps.items()}
    line = f"Step by step (distance / log-perplexity): {told}"
    assert line in printed(show_measures, metrics).splitlines()


def test_the_form_is_told_where_there_was_a_choice() -> None:
    metrics = result_of([["x"], ["y"]]).metrics
    for form, told in (
        (None, False),
        ({"name": "lowercase", "objectives": {}}, False),
        ({"name": "lowercase", "objectives": {"as_written": -1.0, "lowercase": -2.0}}, True),
    ):
        lines = printed(show_measures, metrics | {"form": form}).splitlines()
        assert ("Form of writing: lowercase, the nearest of 2." in lines) == told


def test_texts_that_tokenise_differently_are_told() -> None:
    metrics = result_of([["x"], ["y"]]).metrics
    assert "re-tokenise" not in printed(show_measures, metrics)
    metrics["synthetic"]["retokenised_differently"] = 1
    told = "1 of 2 texts re-tokenise differently; all figures are of the texts as they are."
    assert told in printed(show_measures, metrics).splitlines()


def test_the_run_folder_is_told_if_there_is_one() -> None:
    folder = Path("/runs/[bold]" + "long" * 40)
    out = printed(show_result, result_of([["x"], ["y"]], run_dir=folder), width=60)
    assert f"\nRun folder: {folder}\n" in out
    assert f"\nTexts:      {folder}/data/synthetic.jsonl\n" in out
    assert "Run folder" not in printed(show_result, result_of([["x"], ["y"]]))


# ---- findings


def test_findings_are_one_line_each() -> None:
    findings = [
        Finding("ok", "model", "a [bold]name[/bold]"),
        Finding("note", "rendering", "two\nlines"),
        Finding("fail", "data", "no file 'x\x1b[31m'"),
    ]
    assert printed(show_findings, findings, width=20) == (
        "  ok  model        a [bold]name[/bold]\n"
        "note  rendering    two\\nlines\n"
        "FAIL  data         no file 'x\\x1b[31m'\n"
    )
