"""`gradmm.privacy.planning`: shares of a budget, and what noise leaves of a target."""

from __future__ import annotations

import math

import pytest
import torch

from gradmm.errors import ConfigError
from gradmm.privacy.accounting import Gaussian, epsilon_of, noise_multiplier_for
from gradmm.privacy.config import Budget, PrivacyConfig, Promise
from gradmm.privacy.planning import advice, expected_snr, make_plan, noise_norm, outlook, plan_of_noise, shares_of

ADD = "add_or_remove_one"


def budget(epsilon=1.0, delta=1e-5, relation=ADD, **given) -> Budget:
    return Budget(target_epsilon=epsilon, target_delta=delta, neighboring_relation=relation, **given)


# ---- the plan


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_one_release_takes_the_whole_budget(accountant):
    plan = make_plan(budget(accountant=accountant))
    assert [(one.name, one.share) for one in plan.releases] == [("target", 1)]
    assert plan.noise_multiplier == noise_multiplier_for(1.0, 1e-5, ADD, accountant)
    assert 0.9999 < plan.epsilon <= 1
    assert plan.epsilon == (plan.epsilon_pld if accountant == "pld" else plan.epsilon_rdp)
    assert plan.epsilon_pld < plan.epsilon_rdp
    assert plan.accountant_version.startswith("dp-accounting ")


def test_counts_words_and_rounds_share_the_budget():
    plan = make_plan(budget(2.0, relation="replace_one"), {"counts": 0.1, "words": 0.3}, rounds=2)
    assert [one.name for one in plan.releases] == ["counts", "words", "target 1", "target 2"]
    assert [one.share for one in plan.releases] == pytest.approx([0.1, 0.3, 0.3, 0.3])
    assert 1.9999 < epsilon_of([one.event for one in plan.releases], 1e-5, "replace_one") <= 2
    whole = make_plan(budget(2.0, relation="replace_one"))
    assert plan.noise_multiplier == pytest.approx(whole.noise_multiplier / math.sqrt(0.3), rel=1e-5)
    assert plan.event("counts").noise_multiplier == pytest.approx(
        whole.noise_multiplier / math.sqrt(0.1), rel=1e-5
    )


def test_what_is_released_beside_the_target():
    given = {"neighboring_relation": ADD, "target_epsilon": 1, "target_delta": 1e-5}
    public = PrivacyConfig(**given, num_rows=100)
    noisy = PrivacyConfig(**given, count="noisy", count_fraction=0.6, words_fraction=0.4)
    assert (shares_of(public, False), shares_of(public, True)) == ({}, {"words": 0.5})
    assert shares_of(noisy, False) == {"counts": 0.6} and shares_of(noisy, True) == {"counts": 0.6, "words": 0.4}
    with pytest.raises(ConfigError) as caught:
        make_plan(noisy, shares_of(noisy, True))
    told = "60% of the budget for counts and 40% of the budget for words leave nothing to the target; lower a "
    assert str(caught.value).startswith(told)


def test_rounds_cost_root_k_in_noise():
    one, four = (make_plan(budget(), rounds=rounds).noise_multiplier for rounds in (1, 4))
    assert four == pytest.approx(2 * one, rel=1e-5)


def test_the_way_back():
    plan = make_plan(budget())
    back = plan_of_noise(Promise(target_delta=1e-5, neighboring_relation=ADD), plan.noise_multiplier)
    assert (back.epsilon, back.target_epsilon) == (plan.epsilon, plan.epsilon)
    rounds = plan_of_noise(Promise(target_delta=1e-5, neighboring_relation=ADD), 2 * plan.noise_multiplier, 4)
    assert rounds.epsilon == pytest.approx(plan.epsilon, rel=1e-12)


# ---- signal and noise


def test_the_norm_of_noise_is_what_is_said():
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3.5 / 250
    assert float(noise.norm()) == pytest.approx(noise_norm(3.5, 40_000, 250), rel=0.02)
    assert expected_snr(3.5, 40_000, 250) == 1 / noise_norm(3.5, 40_000, 250)
    assert expected_snr(3.5, 40_000, 250, signal=0.3) == pytest.approx(0.3 / noise_norm(3.5, 40_000, 250))


def test_arithmetic_of_the_design():
    """Rows of the verbaliser; and the head of Phi-1.5, with the textbook's z = sqrt(2 log(1.25 / delta)) /
    epsilon."""
    assert noise_norm(noise_multiplier_for(1, 1e-5, ADD), 2 * 2048, 4000) == pytest.approx(0.06, abs=5e-4)
    textbook = math.sqrt(2 * math.log(1.25 / 1e-4)) / 0.05
    assert noise_norm(textbook, 51_200 * 2048, 25) == pytest.approx(35_600, rel=1e-3)
    exact = noise_norm(noise_multiplier_for(0.05, 1e-4, ADD), 51_200 * 2048, 25)
    assert exact == pytest.approx(18_344, rel=1e-3)  # half of it is enough, and drowns the target as well


def test_what_drowns_is_said_with_what_helps():
    said = advice(4.0, 4096, 128, budget())
    assert expected_snr(4.0, 4096, 128) == 0.5
    assert said[0] == "The target drowns in the noise; what brings the ratio to 4:"
    assert said[1].startswith("a space of at most 64 numbers instead of 4,096 (space.maps: verbaliser")
    assert said[2] == "1,024 rows per class instead of 128"
    assert said[3] == "an epsilon of 10 for the target, which is a weaker promise"
    assert expected_snr(4.0, 64, 128) == expected_snr(4.0, 4096, 1024) == expected_snr(0.5, 4096, 128) == 4
    assert epsilon_of([Gaussian(0.5)], 1e-5, ADD) == pytest.approx(10, abs=0.05)


def test_what_may_drown_is_said_too_and_what_does_not_is_not():
    assert advice(4.0, 4096, 128 * 4, budget())[0].startswith("The target may drown in the noise, as it is often")
    assert advice(4.0, 4096, 128 * 8, budget()) == []


def test_what_cannot_help_is_left_out():
    said = advice(45.0, 51_200 * 2048, 25, budget(0.05, 1e-4))
    assert len(said) == 2 and said[1] == "1,843,200 rows per class instead of 25"


def test_an_outlook_is_by_the_least_class():
    plan = make_plan(budget())
    found = outlook(budget(public_counts={"a": 4000, "b": 1000}), plan, 512)
    assert found.rows == 1000
    assert found.noise_norm == noise_norm(plan.noise_multiplier, 512, 1000)
    shared = outlook(budget(num_rows=8000), plan, 512, num_classes=4)
    assert (shared.rows, shared.expected_snr) == (2000, expected_snr(plan.noise_multiplier, 512, 2000))
    assert outlook(budget(), plan).expected_snr is None
    with pytest.raises(ConfigError, match="takes a number of rows too; give num_rows"):
        outlook(budget(), plan, 512)
