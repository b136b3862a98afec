"""`gradmm.gradients.denoising`: noise that was added on purpose, and how much of it is left."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradmm.gradients.denoising import denoised, drowned
from gradmm.gradients.factors import Factors
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import FLOOR, Unigrams

M, D = 5, 80
NAMES = ("rare", "common", "usual")
STDS = (0.3, 0.02, 0.05)
"""Of the noise: the rare class has most."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signal(seed: int, rows: int = M, columns: int = D) -> torch.Tensor:
    """Mostly of rank one, as a mean of r h^T is, and a little of a second."""
    draw = generator(seed)
    parts = [
        torch.outer(torch.randn(rows, generator=draw), torch.randn(columns, generator=draw)) for _ in range(2)
    ]
    return (parts[0] / parts[0].norm() + 0.3 * parts[1] / parts[1].norm()).float()


def noisy(value: torch.Tensor, std: float, seed: int) -> torch.Tensor:
    return value + std * torch.randn(value.shape, generator=generator(1000 + seed))


def target_of(seed: int, stds: tuple[float, ...] = STDS) -> tuple[ReleasedTarget, list[torch.Tensor]]:
    """Three classes with noise, and what they are without."""
    clean = [signal(10 * seed + label) for label in range(len(stds))]
    classes = tuple(
        ClassTarget(None, (noisy(value, std, 10 * seed + label), torch.ones(M)), noise_std=std)
        for label, (value, std) in enumerate(zip(clean, stds, strict=True))
    )
    return ReleasedTarget(classes), clean


def weights(target: ReleasedTarget) -> list[torch.Tensor]:
    return [own.materialised()[0] for own in target.classes]


def test_singular_values_are_shrunk_by_gavish_and_donoho() -> None:
    stds = (0.1, 0.02, 0.05)
    target, _ = target_of(0, stds)
    for own, found, std in zip(target.classes, weights(denoised(target)), stds, strict=True):
        left, values, right = np.linalg.svd(own.materialised()[0].double().numpy(), full_matrices=False)
        unit, ratio, kept = std * math.sqrt(D), M / D, []
        for value in values:
            y = value / unit
            above = y > 1 + math.sqrt(ratio)
            kept.append(unit * math.sqrt((y * y - ratio - 1) ** 2 - 4 * ratio) / y if above else 0.0)
        assert 0 < sum(value > 0 for value in kept) < M
        np.testing.assert_allclose(found.numpy(), left @ np.diag(kept) @ right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(M, D), (D, M), (1, D), (40, 60)])
@pytest.mark.parametrize("std", [0.005, 0.02, 0.04])
def test_it_comes_nearer_to_what_is_there_without_noise(shape: tuple[int, int], std: float) -> None:
    """And about as near as anybody could who keeps the singular vectors and knows the signal."""
    errors, before, best = [], [], []
    for seed in range(20):
        clean = signal(seed, *shape)
        own = ClassTarget(None, (noisy(clean, std, seed), torch.zeros(shape[0])), noise_std=std)
        (found,) = weights(denoised(ReleasedTarget((own,))))
        left, _, right = torch.linalg.svd(own.materialised()[0].double(), full_matrices=False)
        fit = (left * (left.T @ clean.double() @ right.T).diagonal()) @ right
        for kept, value in ((errors, found), (before, own.materialised()[0]), (best, fit)):
            kept.append(float((value - clean).square().sum()))
    assert sum(errors) < sum(before)
    assert sum(errors) < 1.15 * sum(best) + 1e-3


def test_a_rare_class_no_longer_decides_what_all_are_together() -> None:
    def cosine(seed: int, clean_off: bool) -> float:
        target, clean = target_of(seed)
        mean = torch.stack(weights(denoised(target) if clean_off else target)).mean(0)
        return float(torch.cosine_similarity(mean.flatten(), torch.stack(clean).mean(0).flatten(), dim=0))

    raw, found = ([cosine(seed, off) for seed in range(10)] for off in (False, True))
    assert sum(raw) / 10 < 0.5 < 0.7 < sum(found) / 10


def test_all_else_of_a_class_stays() -> None:
    target, _ = target_of(0)
    words = Unigrams(torch.rand(4).double(), 1e-3, 0.4)
    target = replace(target, classes=tuple(replace(own, unigrams=words) for own in target.classes))
    for own, before in zip(denoised(target).classes, target.classes, strict=True):
        assert torch.equal(own.bias(), before.bias()) and own.unigrams is words, "which are exact"
        assert own.noise_std == 0 < before.noise_std, "which is taken for exact from now on"
    assert denoised(denoised(target)) is not target
    again = denoised(target)
    assert denoised(again) is again


def test_an_exact_target_is_what_it_was() -> None:
    draw = generator(0)
    factors = Factors(torch.randn(1, 3, M, generator=draw), torch.randn(1, 3, D, generator=draw), torch.ones(1, 3))
    target = ReleasedTarget((ClassTarget(factors, None), ClassTarget(None, (signal(0), torch.ones(M)))))
    assert denoised(target) is target
    assert drowned(target, NAMES[:2]) == []


def test_what_all_classes_have_in_common_is_put_back() -> None:
    """The centred target's whole: what was taken off is known best, and has no part in it."""
    target, _ = target_of(0)
    common_D = 3 * torch.randn(D, generator=generator(7))
    classes = [
        replace(own, dense=(own.materialised()[0] + torch.outer(own.bias(), common_D), own.bias()))
        for own in target.classes
    ]
    centred = ReleasedTarget(tuple(classes)).centred()
    found = denoised(centred)
    shift_D = centred.space.maps[-1].h_shift_D
    for own, whole in zip(found.classes, found.whole.classes, strict=True):
        expected = own.materialised()[0] + torch.outer(own.bias(), shift_D)
        torch.testing.assert_close(whole.materialised()[0], expected)
        assert whole.noise_std == 0
    assert found.whole.space is centred.whole.space and found.space is centred.space


def test_a_class_that_drowns_is_named_and_has_a_distance_still() -> None:
    target, _ = target_of(0, (50.0, 0.02, 0.05))
    assert drowned(target, NAMES) == ["rare"]
    found = denoised(target)
    rare, common, _ = (float(own.norm()) for own in weights(found))
    assert 0 < rare < 0.01 * common
    torch.testing.assert_close(weights(found)[0] / rare, weights(target)[0] / weights(target)[0].norm())
    all_noise, _ = target_of(0, (50.0, 60.0, 70.0))
    assert drowned(all_noise, NAMES) == list(NAMES)
    assert drowned(target_of(0, (0.1, 0.02, 0.05))[0], NAMES) == []


def test_the_centre_is_that_of_the_classes_that_are_known_best() -> None:
    """m = sum_c w_c G_c^T g_c / sum_c w_c |g_c|^2, with w_c the precision where there is noise."""
    target, _ = target_of(3)

    def centre(of: ReleasedTarget) -> torch.Tensor:
        return of.centred().space.maps[-1].h_shift_D

    precision = [std**-2 for std in STDS]
    pulls = [
        weight * own.materialised()[0].T @ own.bias()
        for own, weight in zip(target.classes, precision, strict=True)
    ]
    squares = [weight * own.bias().square().sum() for own, weight in zip(target.classes, precision, strict=True)]
    torch.testing.assert_close(centre(target), torch.stack(pulls).sum(0) / sum(squares))
    exact = replace(target, classes=tuple(replace(own, noise_std=0.0) for own in target.classes))
    plain = [own.materialised()[0].T @ own.bias() for own in target.classes]
    torch.testing.assert_close(centre(exact), torch.stack(plain).sum(0) / (3 * M))


# ---- words


def with_shares(shares: list[list[float]], stds: tuple[float, ...]) -> ReleasedTarget:
    target, _ = target_of(0)
    words = [
        Unigrams(torch.tensor(own, dtype=torch.float64), FLOOR + std, 0.4, std)
        for own, std in zip(shares, stds, strict=True)
    ]
    return replace(
        target,
        classes=tuple(replace(own, unigrams=one) for own, one in zip(target.classes, words, strict=True)),
    )


def test_a_word_tells_of_a_class_what_stands_out_of_the_noise() -> None:
    """Two standard deviations of how far a class is from the mean of three are taken off."""
    std, mean = 0.01, 0.2
    left = std * (1 - 1 / 3) ** 0.5

    def found(differs: float) -> list[float]:
        apart = (differs, -differs, 0.0)  # and what a class has more of one word it has less of another
        target = with_shares([[mean + some, 0.3, mean - some] for some in apart], (std,) * 3)
        shares = [own.unigrams for own in denoised(target).classes]
        assert all(own.noise_std == 0 and own.clip == 0.4 for own in shares)
        assert all(own.floor == pytest.approx(FLOOR + std / 3**0.5) for own in shares)
        assert all(float(own.share_V[1]) == pytest.approx(0.3) for own in shares)
        return [float(own.share_V[0]) for own in shares]

    assert found(1.9 * left) == pytest.approx([mean] * 3)
    assert found(2.5 * left) == pytest.approx([mean + 0.5 * left, mean - 0.5 * left, mean])


def test_a_rare_class_has_the_words_of_all() -> None:
    """Its noise has no part in what all have in common, and decides what it has beyond that."""
    target = with_shares([[0.9, -0.4], [0.2, 0.3], [0.2, 0.3]], (10.0, 1e-4, 1e-4))
    for own in denoised(target).classes:
        torch.testing.assert_close(own.unigrams.share_V, torch.tensor([0.2, 0.3]).double(), rtol=0, atol=1e-6)
    assert all(float(own.unigrams.share_V.min()) >= 0 for own in denoised(target).classes)


def test_shares_come_nearer_to_what_they_are() -> None:
    draw, size, std = generator(0), 2000, 1e-3
    common_V = torch.distributions.Exponential(torch.ones(size)).sample() / size
    clean, noisy_shares = [], []
    for label in range(3):
        own_V = common_V.clone()
        own_V[20 * label : 20 * label + 20] += 8e-3  # the words that tell of it
        clean.append(own_V)
        noisy_shares.append((own_V + std * torch.randn(size, generator=draw)).tolist())
    target = with_shares(noisy_shares, (std,) * 3)
    for value, own, before in zip(clean, denoised(target).classes, target.classes, strict=True):
        errors = [float((one.unigrams.share_V - value).square().sum()) for one in (own, before)]
        assert errors[0] < 0.75 * errors[1]


def test_how_many_rows_a_class_has_is_not_what_it_says() -> None:
    """Divided by an equal share of all rows, a class of many has more of every word."""
    shares = [[0.1, 0.3, 0.02], [0.1, 0.3, 0.02], [0.1, 0.3, 0.08]]
    divided = [[2.0 * share for share in shares[0]], [0.1 * share for share in shares[1]], shares[2]]
    found = denoised(with_shares(divided, (1e-6,) * 3))
    rates = [own.unigrams.share_V / own.unigrams.share_V[0] for own in found.classes]
    for own_V, expected in zip(rates, shares, strict=True):
        torch.testing.assert_close(own_V, torch.tensor(expected).double() / expected[0], rtol=1e-3, atol=1e-3)


def test_a_class_of_few_rows_does_not_say_how_many_words_the_others_have() -> None:
    """Its mass is noise, whether it stands out by chance or not."""
    for mass in (-9.0, 0.1, 30.0):
        target = with_shares([[mass, 0.3], [0.2, 0.3], [0.2, 0.3]], (5.0, 1e-4, 1e-4))
        for own in denoised(target).classes[1:]:
            torch.testing.assert_close(own.unigrams.share_V, torch.tensor([0.2, 0.3]).double(), rtol=0, atol=1e-5)
