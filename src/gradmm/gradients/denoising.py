"""A released target with its noise taken off, as far as it can be told from what it lies on.

A class's mean gradient is a matrix of M x D numbers with noise of known standard deviation s on each. What the
rows say is nearly of rank one, since the mean of r h^T is mostly that of r times that of h; noise is of full rank.
So singular values are shrunk as is best for the squared error (Gavish and Donoho 2017), in units of s sqrt(D):

    y -> sqrt((y^2 - b - 1)^2 - 4 b) / y   where y > 1 + sqrt(b), else 0            b = M / D, with M <= D

A class of few rows, whose noise would outweigh what all others say, is shrunk most. Of shares of words few tell of
a class, so what a class has beyond what all have in common is thresholded (Donoho and Johnstone 1994):

    f_c - f -> sign(f_c - f) max(0, |f_c - f| - 2 s)                                f the mean, by precision

Before, all classes' words get the same mass: where the number of all rows alone is public, a class's sums were
divided by its equal share of them, and how many it has itself would look like what it says.

It all follows from the release, and is post-processing. Of an exact target nothing changes.

Shape suffixes: C classes, V vocabulary (of a gradient: M), D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import FLOOR, Unigrams

_STANDS_OUT = 2.0  # standard deviations of noise that a word's share has to differ by
_LEAST = 1e-6  # of a gradient of which nothing stands out: there is no distance to nothing


def denoised(target: ReleasedTarget) -> ReleasedTarget:
    """What is aimed at of a target with noise: the same classes, each nearer to what it is without.

    What all classes have in common is known best, and is left as it is; so is the gradient of the bias, one number
    for D of the weight's.
    """
    if not any(own.noise_std or (own.unigrams and own.unigrams.noise_std) for own in target.classes):
        return target
    words = _words(target)
    classes = tuple(
        replace(_denoised(own), unigrams=shares) for own, shares in zip(target.classes, words, strict=True)
    )
    if target.whole is None:
        return replace(target, classes=classes)
    back = target.space.maps[-1].shifted_back
    whole = replace(target.whole, classes=tuple(own.mapped(back) for own in classes))
    return replace(target, classes=classes, whole=whole)


def drowned(target: ReleasedTarget, label_names: Sequence[str]) -> list[str]:
    """Classes of which nothing stands out of the noise."""
    named = zip(label_names, target.classes, strict=True)
    return [name for name, own in named if own.noise_std and not bool(_shrunk(own).any())]


def _denoised(own: ClassTarget) -> ClassTarget:
    if own.noise_std == 0:
        return own
    weight_VD, bias_V = own.materialised()
    kept_VD = _shrunk(own)
    found_VD = kept_VD if bool(kept_VD.any()) else _LEAST * weight_VD
    return replace(own, factors=None, dense=(found_VD, bias_V), noise_std=0.0)


def _shrunk(own: ClassTarget) -> Tensor:
    """The weight's gradient with its singular values shrunk (V, D)."""
    weight_VD, _ = own.materialised()
    exact_VD = weight_VD.double().cpu()
    wide = exact_VD if len(exact_VD) <= exact_VD.shape[1] else exact_VD.T
    squares, left = torch.linalg.eigh(
        wide @ wide.T
    )  # of the smaller side; what is above the noise is exact enough
    ratio, unit = len(wide) / wide.shape[1], own.noise_std * math.sqrt(wide.shape[1])
    y = squares.clamp_min(0).sqrt() / unit
    inside = ((y.square() - ratio - 1).square() - 4 * ratio).clamp_min(0).sqrt()
    kept = torch.where(y > 1 + math.sqrt(ratio), inside / y.square().clamp_min(1e-30), 0.0)  # of each value
    found: Tensor = (left * kept) @ (left.T @ wide)
    return (found if wide is exact_VD else found.T).to(weight_VD)


def _words(target: ReleasedTarget) -> list[Unigrams | None]:
    """Shares of words of every class, drawn to what all have in common; exact ones, or none, as they are."""
    found = [own.unigrams for own in target.classes]
    known = [own for own in found if own is not None and own.noise_std > 0]
    if len(known) < len(found):
        return found
    share_CV, noise_C = _same_mass(known)
    common_V, square = _by_precision(share_CV, noise_C), float(1 / noise_C.pow(-2).sum())
    apart_CV, noise_C = share_CV - common_V, (noise_C.square() - square).clamp_min(0).sqrt()
    kept_CV = apart_CV.sign() * (apart_CV.abs() - _STANDS_OUT * noise_C.unsqueeze(1)).clamp_min(0)
    floor = FLOOR + math.sqrt(square)
    return [
        Unigrams((common_V + kept_V).clamp_min(0), floor, own.clip)
        for own, kept_V in zip(known, kept_CV, strict=True)
    ]


def _same_mass(known: Sequence[Unigrams]) -> tuple[Tensor, Tensor]:
    """Shares of words (C, V) that add up to the same in all classes where that is known, and their noise (C)."""
    share_CV = torch.stack([own.share_V for own in known])
    noise_C = torch.tensor([own.noise_std for own in known], dtype=torch.float64)
    mass_C, words = share_CV.sum(1), int((share_CV != 0).any(0).sum())
    mean = _by_precision(mass_C, noise_C)
    stands_out_C = mass_C > _STANDS_OUT * noise_C * math.sqrt(words)
    scale_C = torch.where(stands_out_C & (mean > 0), mean / mass_C, 1.0)
    return share_CV * scale_C.unsqueeze(1), noise_C * scale_C


def _by_precision(known_CX: Tensor, noise_C: Tensor) -> Tensor:
    """The mean over classes that has the least noise."""
    weight_C = noise_C.pow(-2)
    return weight_C @ known_CX / weight_C.sum()
