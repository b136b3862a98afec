"""Forms of writing: what they make of texts, that a second time changes nothing, and that words are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gradmm.solvers.forms import AS_WRITTEN, STEPS, Form
from gradmm.solvers.pool import PoolConfig

TEXT = "Don't miss it: a well-made film (of 3.5 stars), she's \"great\"..."


@pytest.mark.parametrize(
    ("name", "formed"),
    [
        (AS_WRITTEN, TEXT),
        ("lowercase", "don't miss it: a well-made film (of 3.5 stars), she's \"great\"..."),
        ("no_final_punctuation", "Don't miss it: a well-made film (of 3.5 stars), she's \"great"),
        ("no_punctuation", "Dont miss it a well made film of 3 5 stars shes great"),
        (
            "spaced_punctuation",
            "Do n't miss it : a well-made film ( of 3.5 stars ) , she 's \" great \" ...",
        ),
        ("lowercase+no_punctuation", "dont miss it a well made film of 3 5 stars shes great"),
        (
            "spaced_punctuation+no_final_punctuation",
            "Do n't miss it : a well-made film ( of 3.5 stars ) , she 's \" great",
        ),
    ],
)
def test_what_a_form_makes_of_a_text(name: str, formed: str) -> None:
    assert Form(name)(TEXT) == formed


@pytest.mark.parametrize(
    "text", ["It was good.", "It was good!?", "It was good .", 'It was "good".', "It was good。"]
)
def test_final_punctuation_of_every_kind_goes(text: str) -> None:
    formed = Form("no_final_punctuation")(text)
    assert formed.endswith("good") and text.startswith(formed)


def test_what_a_script_does_not_have_stays() -> None:
    for name in PoolConfig().forms:
        assert Form(name)("हिन्दी में अच्छी फ़िल्म") == "हिन्दी में अच्छी फ़िल्म"  # marks that are not letters
        assert Form(name)("这部电影很好") == "这部电影很好"


@pytest.mark.parametrize("name", [*STEPS, *PoolConfig().forms])
@given(text=st.one_of(st.text(max_size=40), st.text("aIn't's.,!?-()\" \u20191", max_size=20)))
def test_a_second_time_changes_nothing(name: str, text: str) -> None:
    once = Form(name)(text)
    assert Form(name)(once) == once


@given(text=st.text(st.characters(whitelist_categories=["Lu", "Ll", "Nd", "P", "Zs"]), max_size=40))
def test_letters_and_digits_are_neither_lost_nor_moved(text: str) -> None:
    def letters(of: str) -> str:
        return "".join(char for char in of if char.isalnum())

    for name in ("no_final_punctuation", "no_punctuation", "spaced_punctuation"):
        assert letters(Form(name)(text)) == letters(text)
    assert letters(Form("lowercase")(text)) == letters(text.lower())


@pytest.mark.parametrize("name", ["lower", "lowercase+", "", "as_written+lowercase"])
def test_an_unknown_form_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"is no step of a form.*give 'as_written', or steps with"):
        PoolConfig(forms=(name,))


def test_at_least_one_form_is_needed() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        PoolConfig(forms=())
