"""The error classes' promises, and the words that mend a misspelt name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmm import errors


@pytest.mark.parametrize(
    ("kind", "parents", "exit_code"),
    [
        (errors.ConfigError, (errors.GradmmError, ValueError), 2),
        (errors.TaskError, (errors.ConfigError,), 2),
        (errors.DataError, (errors.GradmmError, ValueError), 1),
        (errors.ModelError, (errors.GradmmError, ValueError), 1),
        (errors.RunFolderError, (errors.GradmmError,), 1),
        (errors.HubError, (errors.GradmmError,), 1),
        (errors.NonFiniteError, (errors.GradmmError, ArithmeticError), 1),
        (errors.PrivacyBudgetError, (errors.GradmmError,), 3),
    ],
)
def test_error_kinds(kind: type[errors.GradmmError], parents: tuple[type, ...], exit_code: int) -> None:
    assert all(issubclass(kind, parent) for parent in parents)
    assert kind.exit_code == exit_code


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("lable", ["text", "label"], "; did you mean 'label'?"),
        ("TEXT", ["text", "label"], "; did you mean 'text'?"),
        ("sentence", ["text", "label"], "; known: label, text"),
        ("zzz", [f"c{n:02}" for n in range(12)], "; known: " + ", ".join(f"c{n:02}" for n in range(12))),
        (
            "zzz",
            [f"c{n:02}" for n in range(13)],
            "; known: " + ", ".join(f"c{n:02}" for n in range(12)) + ", ...",
        ),
        ("anything", [], ""),
    ],
)
def test_nearest(name: str, known: list[str], expected: str) -> None:
    assert errors.nearest(name, known) == expected


def test_nearest_takes_an_iterator() -> None:
    assert errors.nearest("sentence", iter(["text", "label"])) == "; known: label, text"


@given(st.text(min_size=1), st.lists(st.text(min_size=1)))
def test_closest_is_always_a_known_name(name: str, known: list[str]) -> None:
    assert errors.closest(name, known) in {None, *known}
    assert errors.closest(name, [*known, name]) is not None
