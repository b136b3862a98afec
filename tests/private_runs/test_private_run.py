"""Private runs: what is left of them and said, and that every solver takes what was released."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from gradmm.errors import RunFolderError
from gradmm.privacy.verification import verify
from gradmm.result import Result
from private_tools import COUNTS, FEW, PRIVACY, ROWS, TILTED, StopAt, make
from run_tools import FILES, Idle, files


def test_the_ledger_is_an_artefact(whole: Result, tiny_lm: Any, tmp_path: Path) -> None:
    assert files(whole.run_dir) == FILES | {"privacy.json"}
    found = verify(whole.run_dir)
    assert found.holds and len(found.spends) == 1
    assert "  privacy.json\n" in (whole.run_dir / "SHA256SUMS").read_text()
    again = make(tiny_lm("gpt2"), FEW, whole.run_dir, Idle())
    assert list(again.dataset) == list(whole.dataset)
    shutil.copytree(whole.run_dir, tmp_path / "cut")
    lines = (tmp_path / "cut" / "privacy.json").read_text().splitlines(keepends=True)
    (tmp_path / "cut" / "privacy.json").write_text(lines[0])
    with pytest.raises(RunFolderError, match=r"privacy\.json is not as the run left it"):
        make(tiny_lm("gpt2"), FEW, tmp_path / "cut", Idle())


def test_the_metrics_say_what_was_spent_and_that_distances_are_to_a_noisy_target(whole: Result) -> None:
    private, (spend,) = whole.metrics["privacy"], verify(whole.run_dir).spends
    assert private["target"] == "released with noise; distances are to it, not to the real rows"
    assert private["is_private"] and 2.99 < private["epsilon"] <= 3 == private["target_epsilon"]
    assert (private["delta"], private["neighboring_relation"], private["unit"]) == (
        1e-5,
        "add_or_remove_one",
        "row",
    )
    assert private["noise_multiplier"] == spend["event"]["noise_multiplier"] and private["clip"] == spend["bound"]
    numbers = 32 + 1  # of one contrast of two verbalisers, with the bias that the centre is made of
    assert private["divisors"] == [1000, 1000] and private["dimension"] == numbers
    assert spend["dimension"] == 2 * numbers
    assert private["noise_norm"] == pytest.approx(private["noise_multiplier"] * numbers**0.5 / 1000)
    assert private["expected_snr"] == pytest.approx(private["expected_signal"] * private["most_snr"])
    assert 0 < private["expected_signal"] <= 1
    assert set(whole.metrics["references"]) == {"lm"}


def test_words_are_said_and_steer_the_writer(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"):
        result = make(tiny_lm("gpt2"), ROWS, tmp_path / "run", **TILTED)
    words, spend = result.metrics["privacy"]["words"], verify(tmp_path / "run").spends[0]
    assert (spend["release"], spend["bound"]) == ("words", words["clip"]) and 0 < words["clip"] <= 1
    assert spend["dimension"] == 2 * words["dimension"]
    assert words["noise_std"] == pytest.approx(words["noise_multiplier"] * words["clip"] / 1000)
    assert f"noise of standard deviation {words['noise_std']:.2g}: a word that is more than" in caplog.text
    assert "Hardly any word" not in caplog.text
    drowned = make(tiny_lm("gpt2"), ROWS, tmp_path / "few", **TILTED, privacy=PRIVACY | {"num_rows": 42})
    told = (
        "Hardly any word stands out of the noise; writer.unigram_step=0 leaves their part of the budget, 50%, to"
    )
    assert told in caplog.text and drowned.dataset.num_rows == 4
    plain = make(tiny_lm("gpt2"), ROWS, tmp_path / "plain", writer={"rounds": 2, "unigram_step": 0})
    assert "words" not in plain.metrics["privacy"] and len(verify(tmp_path / "plain").spends) == 1


def test_the_plan_is_said_before_anything_is_spent(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"), pytest.raises(KeyboardInterrupt):
        make(tiny_lm("gpt2"), FEW, tmp_path / "run", StopAt("pool"), privacy=PRIVACY | {"num_rows": 14})
    assert verify(tmp_path / "run").spends == ()
    told = (tmp_path / "run" / "run.log").read_text()
    assert told.startswith("Promise: epsilon 3, delta 1e-05, per row, add_or_remove_one: ")
    assert "\nPlan: target with noise multiplier " in told and "\nCost: epsilon " in told
    assert "\nSignal to noise: at most 0.8" in told and "of 33 numbers" in told
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned[0] == "The target drowns in the noise; what brings the ratio to 4:"
    assert any("rows per class instead of 7" in line for line in warned)


def test_where_the_lms_own_texts_disagree_the_ratio_that_is_told_is_lower(
    tiny_lm: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "gradmm"):
        result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"num_rows": 120})
    private = result.metrics["privacy"]
    assert private["most_snr"] > 4 > private["expected_snr"]
    assert f"expect a signal-to-noise ratio of {private['expected_snr']:.3g}" in caplog.text
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warned[0] == "The target may drown in the noise; what brings the ratio to 4:"


def test_numbers_of_rows_may_be_released_too(tiny_lm: Any, tmp_path: Path, fixed: None) -> None:
    noisy = {key: value for key, value in PRIVACY.items() if key != "num_rows"} | {"count": "noisy"}
    result = make(tiny_lm("gpt2"), ROWS, tmp_path / "run", privacy=noisy)
    assert [line["release"] for line in verify(tmp_path / "run").spends] == ["counts", "target"]
    found = result.metrics["privacy"]["divisors"]
    assert all(own >= 1 and own % 1 and abs(own - real) < 60 for own, real in zip(found, COUNTS, strict=True))
    assert "which are released too" in (tmp_path / "run" / "run.log").read_text()


@pytest.mark.parametrize(
    "changes", [{"solver": "both"}, {"solver": "admm", "space": {"maps": ["sketch"], "rank": 4}}]
)
def test_every_solver_takes_the_released_target(tiny_lm: Any, tmp_path: Path, changes: Any) -> None:
    admm = {"admm": {"n_outer": 1, "n_inner": 1}, "initial": {"candidates": 1}, "block_size": 2}
    result = make(tiny_lm("phi"), FEW, tmp_path / "run", **admm | changes)  # whose head has a bias
    assert result.dataset.num_rows == 4 and verify(tmp_path / "run").holds


def test_a_clip_of_ones_own_needs_no_median(tiny_lm: Any, tmp_path: Path) -> None:
    result = make(tiny_lm("gpt2"), FEW, tmp_path / "run", privacy=PRIVACY | {"max_grad_norm": 0.25})
    assert result.metrics["privacy"]["clip"] == 0.25
