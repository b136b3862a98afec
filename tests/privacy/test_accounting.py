"""`gradmm.privacy.accounting` against the closed form, the library's own composition, and published figures."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmm.errors import ConfigError
from gradmm.privacy.accounting import (
    Gaussian,
    accountant_version,
    calibrated,
    epsilon_of,
    merged,
    noise_multiplier_for,
)
from privacy_oracles import delta_of_gaussian, epsilon_of_gaussian

ADD, REPLACE = "add_or_remove_one", "replace_one"
SENSITIVITY = {ADD: 1.0, REPLACE: 2.0}
both_relations = pytest.mark.parametrize("relation", [ADD, REPLACE])
both_accountants = pytest.mark.parametrize("accountant", ["pld", "rdp"])


def test_the_oracle_is_the_textbooks():
    """Balle and Wang's figure for epsilon 1, delta 1e-5; delta falls in epsilon and in noise."""
    assert epsilon_of_gaussian(3.730632, 1e-5) == pytest.approx(1, abs=1e-6)
    assert delta_of_gaussian(1, 3.730632) == pytest.approx(1e-5, rel=1e-5)
    assert delta_of_gaussian(1, 2, sensitivity=2) == delta_of_gaussian(1, 1)
    assert delta_of_gaussian(1, 2) < min(delta_of_gaussian(0.5, 2), delta_of_gaussian(1, 1))


# ---- what noise costs


@both_relations
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("noise", [0.2, 1.0, 3.7306, 80.0])
def test_pld_is_the_closed_form_and_rdp_is_above(relation, noise, delta):
    exact = epsilon_of_gaussian(noise, delta, SENSITIVITY[relation])
    by_pld = epsilon_of([Gaussian(noise)], delta, relation)
    assert exact * (1 - 1e-8) <= by_pld <= exact * (1 + 1e-4) + 1e-6
    assert by_pld <= epsilon_of([Gaussian(noise)], delta, relation, "rdp") <= 1.7 * exact + 0.01


@both_accountants
def test_a_row_exchanged_costs_what_half_the_noise_costs_and_not_less_nor_twice_that(accountant):
    for noise in (0.8, 4.0):
        exchanged = epsilon_of([Gaussian(noise)], 1e-5, REPLACE, accountant)
        assert exchanged == pytest.approx(epsilon_of([Gaussian(noise / 2)], 1e-5, ADD, accountant), rel=1e-6)
        assert exchanged > 1.9 * epsilon_of([Gaussian(noise)], 1e-5, ADD, accountant)


@both_relations
@both_accountants
def test_k_releases_are_one_with_noise_smaller_by_root_k(relation, accountant):
    one = epsilon_of([Gaussian(2.0)], 1e-5, relation, accountant)
    for events in (
        [Gaussian(4.0)] * 4,
        [Gaussian(4.0, count=4)],
        [Gaussian(4.0), Gaussian(4.0, 2), Gaussian(4.0)],
    ):
        assert epsilon_of(events, 1e-5, relation, accountant) == pytest.approx(one, rel=1e-12)


@both_relations
def test_composition_is_the_librarys(relation):
    """The library composes privacy loss distributions by convolution; here Gaussians are put together first."""
    noises, neighbours = (2.0, 3.0, 7.0), dp_accounting.NeighboringRelation[relation.upper()]
    theirs = pld.PLDAccountant(neighbours)
    for noise in noises:
        theirs.compose(dp_accounting.GaussianDpEvent(noise))
    ours = epsilon_of([Gaussian(noise) for noise in noises], 1e-5, relation)
    assert ours == pytest.approx(theirs.get_epsilon(1e-5), rel=1e-4)


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_releases_does_not_matter_to_the_last_bit(noises, shuffler):
    events = [Gaussian(noise) for noise in noises]
    shuffled = shuffler.sample(events, len(events))
    assert merged(events) == merged(shuffled)
    assert merged(events)[0].noise_multiplier <= min(noises) * (1 + 1e-12)


def test_nothing_released_costs_nothing():
    assert epsilon_of([], 1e-5, ADD) == epsilon_of([], 1e-5, REPLACE, "rdp") == 0


def test_figures_of_the_design():
    training = [Gaussian(1.0, count=1000, sampling_probability=0.01)]
    assert epsilon_of(training, 1e-5, ADD) == pytest.approx(1.828, abs=5e-4)
    assert epsilon_of(training, 1e-5, ADD, "rdp") == pytest.approx(2.101, abs=5e-4)
    for noise, accountant in ((0.7348, "pld"), (0.7776, "rdp")):
        near = [training[0].scaled(factor * noise) for factor in (1 - 1e-4, 1 + 1e-4)]
        assert epsilon_of(near[:1], 1e-5, ADD, accountant) > 4 > epsilon_of(near[1:], 1e-5, ADD, accountant)
    ten = [Gaussian(1.0, count=10)]
    assert epsilon_of(ten, 1e-5, ADD) == pytest.approx(17.9, abs=0.05)
    assert epsilon_of(ten, 1e-5, REPLACE) == pytest.approx(46.2, abs=0.05)


def test_sampled_rows_compose_with_others():
    training, whole = Gaussian(1.0, 100, 0.01), Gaussian(5.0)
    alone = [epsilon_of([event], 1e-5, ADD) for event in (training, whole)]
    together = epsilon_of([training, whole], 1e-5, ADD)
    assert max(alone) < together < sum(alone)
    assert epsilon_of([whole, training], 1e-5, ADD) == together


def test_rdp_has_no_bound_for_sampled_rows_that_are_exchanged():
    with pytest.raises(ConfigError, match="'rdp' has no bound for sampled rows under 'replace_one'; take 'pld'"):
        epsilon_of([Gaussian(1.0, 10, 0.1)], 1e-5, REPLACE, "rdp")


# ---- noise for a budget


def test_the_noise_of_epsilon_one():
    assert f"{noise_multiplier_for(1, 1e-5, ADD):.4f}" == "3.7306"
    assert f"{noise_multiplier_for(1, 1e-5, REPLACE):.4f}" == "7.4613"


@both_relations
@both_accountants
@pytest.mark.parametrize(("epsilon", "delta"), [(0.05, 1e-6), (1.0, 1e-5), (8.0, 1e-3)])
def test_from_epsilon_to_noise_and_back(relation, accountant, epsilon, delta):
    noise = noise_multiplier_for(epsilon, delta, relation, accountant)
    assert epsilon * (1 - 1e-5) <= epsilon_of([Gaussian(noise)], delta, relation, accountant) <= epsilon
    assert epsilon_of_gaussian(noise, delta, SENSITIVITY[relation]) <= epsilon
    assert epsilon_of([Gaussian(noise * (1 - 1e-4))], delta, relation, accountant) > epsilon


@settings(max_examples=10)
@given(st.floats(0.01, 3), st.floats(-10, -4), st.sampled_from([ADD, REPLACE]))
def test_no_noise_is_less_than_the_closed_form_asks_for(epsilon, log_delta, relation):
    delta = 10**log_delta
    noise = noise_multiplier_for(epsilon, delta, relation)
    assert delta_of_gaussian(epsilon, noise, SENSITIVITY[relation]) <= delta
    assert delta_of_gaussian(epsilon, noise * (1 - 1e-3), SENSITIVITY[relation]) > delta


@both_relations
def test_a_large_budget_is_met_as_closely(relation):
    noise = noise_multiplier_for(100, 1e-5, relation)
    assert 99.99 <= epsilon_of_gaussian(noise, 1e-5, SENSITIVITY[relation]) <= 100


@both_accountants
def test_shares_of_a_budget(accountant):
    shares = (0.05, 0.35, 0.6)
    events = calibrated([Gaussian(share**-0.5) for share in shares], 2.0, 1e-5, REPLACE, accountant)
    assert 1.9999 < epsilon_of(events, 1e-5, REPLACE, accountant) <= 2
    whole = noise_multiplier_for(2.0, 1e-5, REPLACE, accountant)
    for event, share in zip(events, shares, strict=True):
        assert event.noise_multiplier == pytest.approx(whole * share**-0.5, rel=1e-5)


def test_the_noise_of_a_training_is_found_too():
    (found,) = calibrated([Gaussian(1.0, 1000, 0.01)], 4, 1e-5, ADD, "rdp")
    assert found.noise_multiplier == pytest.approx(0.7776, abs=1e-4)
    assert (found.count, found.sampling_probability) == (1000, 0.01)


def test_a_budget_that_an_accountant_cannot_meet_is_refused():
    with pytest.raises(ConfigError, match="take a larger epsilon or delta, or the accountant 'pld'"):
        noise_multiplier_for(0.001, 1e-12, ADD, "rdp")


def test_the_version_is_the_installed_ones():
    assert accountant_version().split(" ")[0] == "dp-accounting"
