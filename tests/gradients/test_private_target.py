"""`gradmm.gradients.private_target`: clipped gradients of real rows against autograd's, and what one row can
change."""

from __future__ import annotations

import json
import math

import pytest
import torch

import oracles
from gradmm.errors import ConfigError, PrivacyBudgetError, TaskError
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.factors import Factors, label_factors
from gradmm.gradients.geometry import geometry
from gradmm.gradients.private_sums import Release
from gradmm.gradients.private_target import STATE, planned_spends, private_target
from gradmm.gradients.spaces import IDENTITY, LinearMap
from gradmm.gradients.unigrams import FLOOR, TokenShares
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.ledger import LEDGER, Ledger
from gradmm.privacy.mechanism import FixedNoise, SystemNoise, clipped, quantum_of
from gradmm.privacy.planning import make_plan, shares_of
from gradmm.privacy.verification import verify
from gradmm.store import RunFolder
from release_oracles import GIVEN, MIXED, NONE, SPLIT, loss_of, row_gradient, space_of
from store_tools import Kept
from target_tools import batches


def release(
    lm,
    task,
    folder,
    split=SPLIT,
    space=IDENTITY,
    clip=0.5,
    with_bias=True,
    noise=NONE,
    shelf=None,
    words_clip=None,
    **given,
):
    config = PrivacyConfig(**GIVEN | given)
    plan, ledger = make_plan(config, shares_of(config, words_clip is not None)), Ledger(folder, config, 2.0)
    what = released_of(lm, task, space, clip, with_bias, words_clip)
    return private_target(lm, task, batches(split, 2), what, config, plan, ledger, shelf or Kept(), noise=noise)


def released_of(lm, task, space=IDENTITY, clip=0.5, with_bias=True, words_clip=None):
    return Release(
        space, geometry(lm, space, with_bias), clip, TokenShares(task, len(lm.embeddings_VE)), words_clip
    )


def joined(target):
    return torch.cat([value.flatten() for value in target.materialised()])


# ---- what is released


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("loss", "maps"),
    [
        *(("vocabulary", maps) for maps in [(), ("verbaliser", "whitened", "shift"), ("subspace",), ("sketch",)]),
        *(("verbalisers", maps) for maps in [(), ("whitened",), ("verbaliser", "contrasts", "whitened")]),
    ],
)
def test_the_target_is_the_mean_of_clipped_gradients(tiny_lm, tiny_task, tmp_path, loss, maps, with_bias):
    """The clip is on weight and bias together, row by row; some rows are longer than it and some are not.

    It is on what the space makes of a row, whatever its maps do, a shift of the hidden states among them.
    """
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, [name for name in maps if name != "shift"], loss_of(task, loss))
    if "shift" in maps:
        space = space.then(LinearMap(h_shift_D=torch.randn(32, generator=torch.Generator().manual_seed(0))))
    rows = [[row_gradient(lm, task, text, label, space) for text in own] for label, own in enumerate(SPLIT)]
    norms = [
        math.hypot(float(weight.norm()), float(bias.norm()) if with_bias else 0)
        for own in rows
        for weight, bias in own
    ]
    clip = sorted(norms)[3]
    found, counts = release(lm, task, tmp_path, space=space, clip=clip, with_bias=with_bias)
    assert counts == (2, 2, 2) and found.space is space
    for own, target in zip(rows, found.classes, strict=True):
        expected_VD, expected_V = torch.zeros_like(own[0][0]), torch.zeros_like(own[0][1])
        for weight_VD, bias_V in own:
            norm = math.hypot(float(weight_VD.norm()), float(bias_V.norm()) if with_bias else 0)
            expected_VD += weight_VD * min(1, clip / norm) / 2
            expected_V += bias_V * min(1, clip / norm) / 2 * with_bias
        weight_VD, bias_V = target.materialised()
        assert oracles.relative_error(weight_VD, expected_VD) < 1e-5
        assert float((bias_V - expected_V).norm()) < 1e-5 * float(expected_V.norm() + 1)
        assert weight_VD.dtype == torch.float32 and weight_VD.device == lm.device


def test_with_a_large_clip_it_is_the_target_that_is_not_private(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    counts = {"public_counts": {f"class {c}": len(own) for c, own in enumerate(SPLIT)}}
    found, _ = release(lm, task, tmp_path, clip=1e3, **counts)
    for mine, theirs in zip(found.classes, compute_target(lm, task, batches(SPLIT, 2)).classes, strict=True):
        assert oracles.relative_error(joined(mine), joined(theirs)) < 1e-4  # quanta of a large clip are coarse


def test_the_noise_is_that_of_the_plan(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, ("verbaliser",))
    found, (count, *_) = release(lm, task, tmp_path / ".", space=space, noise=SystemNoise(), clip=0.7)
    (tmp_path / "without").mkdir()
    clean, _ = release(lm, task, tmp_path / "without", space=space, clip=0.7)
    std = make_plan(PrivacyConfig(**GIVEN)).noise_multiplier * 0.7
    noise = torch.cat([joined(a) - joined(b) for a, b in zip(found.classes, clean.classes, strict=True)]) * count
    assert float(noise.std()) == pytest.approx(std, rel=6 / math.sqrt(2 * len(noise)))
    assert len(noise) == 3 * geometry(lm, space, True).dimension
    told = [own.noise_std * count for own in (*found.classes, *found.centred().classes)]
    assert told == pytest.approx([std] * 6), "and it is known to who reads the target"


def test_counts_are_public_or_released_on_their_own(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    _, counts = release(lm, task, tmp_path, count="noisy", num_rows=None, count_fraction=0.2)
    assert counts == (2, 1, 3), "without noise they are the rows"
    lines = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [(line["release"], line["bound"], line["dimension"]) for line in lines[1:]] == [
        ("counts", 1.0, 3),
        ("target", 0.5, 3 * geometry(lm, IDENTITY, True).dimension),
    ]
    assert 1.999 < lines[2]["epsilon"] <= 2 and lines[1]["epsilon"] < 1.2
    with pytest.raises(ConfigError, match="public_counts lists 'other'"):
        release(lm, task, tmp_path, num_rows=None, public_counts={"other": 6})


# ---- what a row can do


def sums_of(lm, task, folder, split, clip=0.5):
    folder.mkdir()
    shelf = Kept()
    release(lm, task, folder, split, clip=clip, shelf=shelf)
    tensors, _ = shelf.states[STATE]
    return tensors["means"] * tensors["counts"].unsqueeze(1)


def test_one_row_more_changes_nothing_but_its_own_share_to_the_last_bit(tiny_lm, tiny_task, tmp_path):
    """In batches, every other row's gradient would change with it, by rounding."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    longer = "A very long and dull story that comes to a bad end and is not great"
    without = sums_of(lm, task, tmp_path / "without", SPLIT)
    more = sums_of(lm, task, tmp_path / "more", [[longer, *SPLIT[0]], *SPLIT[1:]])
    alone = sums_of(lm, task, tmp_path / "alone", [[longer], [], []])
    quantum = quantum_of(0.5)
    assert ((more - without) / quantum).round().tolist() == (alone / quantum).round().tolist()
    assert 0.4 < float((more - without).norm()) <= 0.5 * (1 + 1e-12)
    assert float((more - without)[1:].abs().max()) < quantum / 4, "a quotient and its product may round"


def test_rows_that_cannot_be_used_add_nothing_and_stop_nothing(tiny_lm, tiny_task, tmp_path, monkeypatch):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    fits = next("a" * n for n in range(200, 0, -1) if len(task.text_ids("a" * n)) == task.room)
    cut = sums_of(lm, task, tmp_path / "cut", [["A", fits + "bbb"], [], []])
    assert torch.equal(cut, sums_of(lm, task, tmp_path / "whole", [["A", fits], [], []]))
    empty = sums_of(lm, task, tmp_path / "empty", [["A", ""], [], []])
    assert torch.equal(empty, sums_of(lm, task, tmp_path / "one", [["A"], [], []]))

    real, bad = task.text_ids, task.text_ids("It")

    def melting(text):
        if text == "It":
            raise TaskError("'It' melts into the token before it; begin it with a space or a line break")
        return real(text)

    with monkeypatch.context() as patch:
        patch.setattr(task, "text_ids", melting)
        melted = sums_of(lm, task, tmp_path / "melted", [["A", "It"], [], []])
    assert torch.equal(melted, sums_of(lm, task, tmp_path / "rest", [["A"], [], []]))

    def broken(lm, batch, embeds, texts_per_set, *others):
        factors = label_factors(lm, batch, embeds, texts_per_set, *others)
        is_bad = batch.ids_NS[0, batch.text_start :].tolist()[: len(bad)] == bad
        return Factors(factors.r_KJV * (math.nan if is_bad else 1), factors.h_KJD, factors.weight_KJ)

    monkeypatch.setattr("gradmm.gradients.spaces.label_factors", broken)
    found = sums_of(lm, task, tmp_path / "bad", [["A", "It"], [], []])
    assert torch.equal(found, sums_of(lm, task, tmp_path / "good", [["A"], [], []]))


def test_a_class_without_rows_is_noise_like_any_other(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, ("verbaliser",))
    found, _ = release(lm, task, tmp_path, [SPLIT[0], [], SPLIT[2]], space=space, noise=SystemNoise())
    assert float(joined(found.classes[1]).norm()) > 0


# ---- once


def test_a_second_run_uses_what_was_released_and_reads_no_row(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    config = PrivacyConfig(**GIVEN)
    seen = []

    def read(split):
        return [(seen.append(batch) or batch for batch in own) for own in batches(split, 2)]

    with RunFolder(tmp_path / "run", {"a": 1}) as folder:
        about = (released_of(lm, task), config, make_plan(config))
        ledger = Ledger(folder.path, config, 2.0)
        first, counts = private_target(lm, task, read(SPLIT), *about, ledger, folder)
        assert len(seen) == 4
        again, same = private_target(lm, task, read(SPLIT), *about, Ledger(folder.path, config, 2.0), folder)
        assert len(seen) == 4 and same == counts
        for one, other in zip(first.classes, again.classes, strict=True):
            assert torch.equal(joined(one), joined(other))
        assert verify(folder.path).holds and len(verify(folder.path).spends) == 1
        (folder.path / "state" / f"{STATE}.safetensors").unlink()
        with pytest.raises(PrivacyBudgetError):
            private_target(lm, task, read(SPLIT), *about, Ledger(folder.path, config, 2.0), folder)
        assert len(seen) == 4, "no row was read"
        raised = Ledger(folder.path, config, 4.0)
        another, _ = private_target(lm, task, read(SPLIT), *about, raised, folder)
        assert not torch.equal(joined(first.classes[0]), joined(another.classes[0]))
        assert 2 < raised.epsilon < 4


def test_words_are_released_beside_it_once(tiny_lm, tiny_task, tmp_path):
    """From the same rows, of which one without tokens adds nothing; the target is the same but for its noise."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    split, shelf = [[*SPLIT[0], ""], *SPLIT[1:]], Kept()
    found, counts = release(lm, task, tmp_path, split, shelf=shelf, words_clip=0.3)
    (tmp_path / "alone").mkdir()
    alone, _ = release(lm, task, tmp_path / "alone", split)
    shares = TokenShares(task, len(lm.embeddings_VE))
    for own, other, texts, count in zip(found.classes, alone.classes, split, counts, strict=True):
        assert torch.equal(joined(own), joined(other)) and other.unigrams is None
        rows_KW = torch.stack([shares.of_words(task.text_ids(text) if text else []) for text in texts])
        expected_W = clipped(rows_KW, 0.3).sum(0) / count
        assert torch.equal(own.unigrams.share_V[shares.words_V], expected_W) and own.unigrams.clip == 0.3
    spends = verify(tmp_path).spends
    assert [line["release"] for line in spends] == ["words", "target"]
    assert spends[0]["bound"] == 0.3 and spends[0]["dimension"] == 3 * int(shares.words_V.sum())
    again, _ = release(lm, task, tmp_path, [[], [], []], shelf=shelf, words_clip=0.3)
    for own, other in zip(found.classes, again.classes, strict=True):
        assert torch.equal(own.unigrams.share_V, other.unigrams.share_V)
        assert own.unigrams.floor == other.unigrams.floor > 2e-4
        assert own.unigrams.noise_std == other.unigrams.noise_std == own.unigrams.floor - FLOOR
    assert len(verify(tmp_path).spends) == 2


def test_a_tests_noise_marks_the_ledger(tiny_lm, tiny_task, tmp_path):
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found.append(release(lm, task, tmp_path / name, noise=FixedNoise(seed=3))[0])
    assert torch.equal(joined(found[0].classes[1]), joined(found[1].classes[1]))
    assert verify(tmp_path / "a").faults == ("line 2 released 'target' with a test's noise: NOT PRIVATE",)
    assert (tmp_path / "a" / LEDGER).read_bytes() == (tmp_path / "b" / LEDGER).read_bytes()


def test_progress_counts_the_rows(tiny_lm, tiny_task, tmp_path):
    lm, done = tiny_lm("phi"), []
    task = tiny_task(lm, MIXED)
    config = PrivacyConfig(**GIVEN)
    ledger = Ledger(tmp_path, config, 2.0)
    about = (released_of(lm, task), config, make_plan(config), ledger, Kept())
    private_target(lm, task, batches(SPLIT, 2), *about, done.append, NONE)
    assert sum(done) == 6


def test_what_is_released_is_centred_without_another_look_at_the_rows(tiny_lm, tiny_task, tmp_path):
    """From the noisy means alone: nothing more is spent, and they are what they were but for their common part."""
    lm = tiny_lm("phi")
    task = tiny_task(lm, MIXED)
    space = space_of(lm, task, ("whitened",), loss_of(task, "verbalisers"))
    found, _ = release(lm, task, tmp_path, space=space, noise=FixedNoise(seed=3))
    spent, centred = (tmp_path / LEDGER).read_bytes(), found.centred()
    assert (tmp_path / LEDGER).read_bytes() == spent
    (shift,) = centred.space.maps[len(space.maps) :]
    for own, released in zip(centred.classes, found.classes, strict=True):
        (weight_VD, bias_V), (noisy_VD, noisy_V) = own.materialised(), released.materialised()
        assert torch.equal(bias_V, noisy_V)
        torch.testing.assert_close(weight_VD, noisy_VD - torch.outer(noisy_V, shift.h_shift_D))


def test_what_the_ledger_will_say_is_known_before_any_row(tiny_lm):
    lm = tiny_lm("gpt2")
    config = PrivacyConfig(**GIVEN | {"neighboring_relation": "replace_one", "count": "noisy"})
    plan = make_plan(config, shares_of(config, with_words=True))
    parts = {"target": (0.25, geometry(lm, IDENTITY, False).dimension), "words": (0.125, 40)}
    counts, words, target = planned_spends(plan, 3, parts, SystemNoise())
    assert (counts.bound, counts.dimension) == (math.sqrt(0.5), 3)
    assert (words.bound, words.dimension, words.event) == (0.125, 3 * 40, plan.event("words"))
    assert (target.bound, target.dimension) == (0.25, 3 * 120 * 32)
    assert target.event == plan.event("target") and target.is_private
