"""`gradmm.privacy.config`: what has to be chosen, what that means, and what cannot be meant."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gradmm.config import ConfigOfRun, load_settings
from gradmm.errors import ConfigError
from gradmm.privacy.config import Budget, PrivacyConfig, Promise, read_privacy

GIVEN = {"neighboring_relation": "replace_one", "target_epsilon": 1.0, "target_delta": 1e-5, "num_rows": 1000}


def refused(model=PrivacyConfig, without=(), **given) -> str:
    tree = {key: value for key, value in (GIVEN | given).items() if key not in without}
    with pytest.raises(ConfigError) as caught:
        read_privacy(model, tree)
    return str(caught.value)


# ---- what has no default


@pytest.mark.parametrize("model", [Promise, Budget, PrivacyConfig])
def test_a_missing_relation_explains_the_choice(model):
    keys = model.model_fields
    said = refused(model, without={"neighboring_relation"} | (set(GIVEN) - set(keys)))
    assert said == (
        "neighboring_relation is missing, and what epsilon promises depends on it; choose "
        "(--neighboring-relation on the command line):\n"
        "  add_or_remove_one: the data and the same with any one row more or less look alike in what is released, "
        "so that it stays hidden whether a row is there at all\n"
        "  replace_one: the data and the same with any one row exchanged for another look alike in what is "
        "released; how many rows there are is known, and the same epsilon takes twice the noise\n"
        "If in doubt: add_or_remove_one is what most papers on differentially private training report"
    )
    with pytest.raises(ValidationError):
        model(**{key: value for key, value in GIVEN.items() if key in keys and key != "neighboring_relation"})


def test_a_missing_delta_and_a_missing_epsilon_are_explained():
    assert refused(without=("target_delta",)).startswith(
        "target_delta is missing: the probability with which the promise of epsilon may fail (--delta); choose "
        "one far below 1 / number of rows"
    )
    assert refused(without=("target_epsilon",)).startswith(
        "target_epsilon is missing: the whole budget, for everything that is released (--epsilon)"
    )
    assert refused(neighboring_relation=None) == refused(without=("neighboring_relation",))


def test_settings_files_and_flags_get_the_same_explanation(tmp_path):
    class Settings(ConfigOfRun):
        privacy: PrivacyConfig | None = None

    (tmp_path / "run.yaml").write_text("privacy: {target_epsilon: 1, target_delta: 1e-5, num_rows: 99}")
    with pytest.raises(ConfigError) as caught:
        load_settings(Settings, tmp_path / "run.yaml")
    assert str(caught.value) == "privacy: " + refused(without=("neighboring_relation",))
    found = load_settings(Settings, tmp_path / "run.yaml", {"privacy.neighboring_relation": "replace_one"})
    assert found.privacy.delta == 1e-5
    with pytest.raises(ConfigError, match=r"unknown setting 'privacy.epsilon'; did you mean 'target_epsilon'"):
        load_settings(Settings, tmp_path / "run.yaml", {"privacy.epsilon": 1})


# ---- delta


def test_delta_is_what_was_given_or_follows_from_a_public_number_of_rows():
    assert PrivacyConfig(**GIVEN).delta == 1e-5
    assert PrivacyConfig(**GIVEN | {"target_delta": "1e-5"}).delta == 1e-5  # YAML reads it as text
    assert PrivacyConfig(**GIVEN | {"target_delta": "auto"}).delta == pytest.approx(1000**-1.2)
    counts = {"num_rows": None, "public_counts": {"a": 300, "b": 700}, "target_delta": "auto"}
    assert PrivacyConfig(**GIVEN | counts).delta == PrivacyConfig(**GIVEN | {"target_delta": "auto"}).delta


def test_deltas_that_promise_nothing_are_refused():
    assert refused(target_delta="auto", count="noisy", num_rows=None).startswith(
        "target_delta is 'auto', 1 / n^1.2 of a public number of rows, and there is none; give num_rows"
    )
    assert refused(target_delta=1e-3) == (
        "target_delta is 0.001 with 1,000 rows: publishing a whole row at random would keep such a promise; give "
        "one far below 1 / 1,000, or 'auto'"
    )
    for delta in (0, 1, 1e-13, -1):
        assert refused(target_delta=delta).startswith(f"target_delta is {delta:g}; give one from 1e-12 to below 1")
    for delta in ("soon", float("nan"), [1]):
        assert refused(target_delta=delta) == f"target_delta: give a number, or 'auto' (it is {delta!r})"


# ---- counts


def test_divisors_are_the_public_counts_in_the_datas_order():
    named = {"num_rows": None, "public_counts": {"b": 700, "a": 300}}
    assert PrivacyConfig(**GIVEN | named).divisors(["a", "b"]) == (300, 700)
    assert PrivacyConfig(**GIVEN | named | {"num_rows": 1000}).rows == 1000
    assert PrivacyConfig(**GIVEN).divisors(["a", "b", "c", "d"]) == (250,) * 4
    assert PrivacyConfig(**GIVEN | {"count": "noisy"}).divisors(["a", "b"]) is None


def test_counts_for_other_classes_are_refused():
    config = PrivacyConfig(**GIVEN | {"num_rows": None, "public_counts": {"positive": 5, "negative": 995}})
    with pytest.raises(
        ConfigError, match="public_counts lists 'negative', which is no class; did you mean 'negativ'"
    ):
        config.divisors(["positive", "negativ"])
    with pytest.raises(ConfigError, match="public_counts lists no number for neutral; give one for every class"):
        config.divisors(["positive", "negative", "neutral"])


def test_counts_that_cannot_be_meant_are_refused():
    assert refused(num_rows=None).startswith("count is 'public', and no number of rows is; give num_rows or")
    assert refused(num_rows=None, public_counts={"a": 0}) == (
        "public_counts is {'a': 0}; give a number of at least 1 for every label name"
    )
    assert refused(public_counts={"a": 1, "b": 2}) == (
        "num_rows is 1,000, but public_counts add up to 3; give one of both, or mend either"
    )
    assert refused(num_rows=None, public_counts={"a": 300}, count="noisy") == (
        "count is 'noisy', but public_counts tell the numbers; leave out either"
    )


# ---- the rest


def test_clips_come_from_public_text_or_from_the_settings():
    assert PrivacyConfig(**GIVEN).max_grad_norm == "public_median"
    assert PrivacyConfig(**GIVEN | {"max_grad_norm": "2.5"}).max_grad_norm == 2.5
    assert refused(max_grad_norm="median") == "max_grad_norm: give a number, or 'public_median' (it is 'median')"
    assert refused(max_grad_norm=0) == "max_grad_norm is 0; give a number above 0, or 'public_median'"


def test_settings_that_would_fix_the_noise_do_not_exist():
    for name in ("seed", "noise", "noise_seed", "test_mode"):
        assert refused(**{name: 1}).startswith(f"{name}: Extra inputs are not permitted")


def test_settings_are_a_mapping():
    with pytest.raises(ValidationError, match="Input should be a valid dictionary"):
        PrivacyConfig.model_validate("private")


def test_odd_values_are_named():
    assert refused(neighboring_relation="replace").startswith(
        "neighboring_relation: Input should be 'add_or_remove"
    )
    assert refused(target_epsilon=0) == "target_epsilon: Input should be greater than or equal to 0.001 (it is 0)"
    assert refused(accountant="gdp") == "accountant: Input should be 'pld' or 'rdp' (it is 'gdp')"
