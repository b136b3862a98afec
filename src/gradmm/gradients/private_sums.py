"""Clipped sums over real rows, of their gradients and of their shares of words; what leaves them has noise.

    Release (what, and how it is clipped) -> PrivateSums (rows are added) -> drawn, once -> Release reads it

Shape suffixes: C classes, M numbers of a class's target, W words, K texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradmm.gradients.factors import Factors
from gradmm.gradients.geometry import Geometry
from gradmm.gradients.private_unigrams import PrivateUnigrams, released_unigrams
from gradmm.gradients.spaces import Space
from gradmm.gradients.target import ReleasedTarget
from gradmm.gradients.unigrams import TokenShares
from gradmm.privacy.mechanism import ClippedSums, Noise
from gradmm.privacy.planning import COUNTS, TARGET, WORDS, Plan


@dataclass(frozen=True)
class Release:
    """What is released of every class, and how it is read."""

    space: Space
    """Where gradients are taken; fitted on public text alone."""
    sizes: Geometry
    """Of a class's mean gradient there."""
    clip: float
    """C of a row's gradient."""
    shares: TokenShares
    """Of words, in a text."""
    words_clip: float | None = None
    """C of a row's shares of words; None releases none."""

    @property
    def parts(self) -> dict[str, tuple[float, int]]:
        """Clip and numbers of one class, of everything that is released."""
        found = {TARGET: (self.clip, self.sizes.dimension)}
        if self.words_clip is not None:
            found[WORDS] = self.words_clip, int(self.shares.words_V.sum())
        return found

    def sums(self, num_classes: int, device: torch.device | str = "cpu") -> PrivateSums:
        """Sums without any rows."""
        gradients, words = PrivateAccumulator(self.sizes, num_classes, self.clip, device), None
        if self.words_clip is not None:
            words = PrivateUnigrams(self.shares, num_classes, self.words_clip)
        return PrivateSums(gradients, words)

    def target(self, drawn: Mapping[str, Tensor], plan: Plan, device: torch.device) -> ReleasedTarget:
        """The target that was drawn, from `PrivateSums.release` with that plan."""
        noise_sum = plan.event(TARGET).noise_multiplier * self.clip
        classes = [
            self.sizes.target(mean_M, device, noise_sum / count)
            for mean_M, count in zip(drawn["means"].cpu(), drawn["counts"].tolist(), strict=True)
        ]
        if self.words_clip is not None:
            own = zip(classes, drawn["words"].cpu(), drawn["words_std"].tolist(), strict=True)
            classes = [
                replace(one, unigrams=released_unigrams(self.shares, mean_W, std, self.words_clip))
                for one, mean_W, std in own
            ]
        return ReleasedTarget(tuple(classes), self.space)


@dataclass(frozen=True)
class PrivateSums:
    """What is released, before its noise: of gradients, and of shares of words where they are asked for."""

    gradients: PrivateAccumulator
    words: PrivateUnigrams | None

    def add(self, label: int, texts: Factors | None, texts_ids: Sequence[Sequence[int]]) -> None:
        """Adds texts of one class.

        Args:
            label: their class.
            texts: as of `PrivateAccumulator.add`.
            texts_ids: their tokens.
        """
        self.gradients.add(label, texts, len(texts_ids))
        if self.words is not None:
            for ids in texts_ids:
                self.words.add(label, ids)

    def release(self, plan: Plan, divisors: Sequence[float] | None, noise: Noise) -> dict[str, Tensor]:
        """Draws the noise, once: `means` (C, M), `counts` (C) that they were divided by, and where there are
        shares of words `words` (C, W) and `words_std` (C), the standard deviation of their noise; float64.

        Args:
            plan: the events that were spent.
            divisors: as of `PrivateAccumulator.release`.
            noise: where it comes from.
        """
        means_CM, counts = self.gradients.release(plan, divisors, noise)
        drawn = {"means": means_CM, "counts": torch.tensor(counts, dtype=torch.float64)}
        if self.words is not None:
            drawn["words"], drawn["words_std"] = self.words.release(plan, counts, noise)
        return drawn


class PrivateAccumulator:
    """Clipped sums of single texts' gradients; what leaves has noise.

    Args:
        geometry: sizes in the space.
        num_classes: classes.
        clip: C.
        device: where sums are held; the CPU where a device has no float64.
    """

    def __init__(
        self, geometry: Geometry, num_classes: int, clip: float, device: torch.device | str = "cpu"
    ) -> None:
        self._geometry = geometry
        self._device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._sums = ClippedSums(num_classes, geometry.dimension, clip, self._device)

    def add(self, label: int, texts: Factors | None, count: int) -> None:
        """Adds texts of one class.

        Args:
            label: their class.
            texts: in the space, one set per text; None for texts that have no gradient, which add nothing.
            count: how many.
        """
        assert texts is None or texts.num_sets == count, count
        if texts is None:
            rows_KM = torch.zeros(count, self._geometry.dimension, device=self._device)
        else:
            rows_KM = self._geometry.flat(Factors(*(value.to(self._device) for value in texts.tensors())))
        self._sums.add(label, rows_KM)

    def release(
        self, plan: Plan, divisors: Sequence[float] | None, noise: Noise
    ) -> tuple[Tensor, tuple[float, ...]]:
        """Draws the noise, once: mean gradients (C, M), float64, and what they were divided by.

        Args:
            plan: the events that were spent.
            divisors: public; None for noisy counts, which the plan has an event for.
            noise: where it comes from.
        """
        if divisors is None:
            divisors = self._sums.release_counts(plan.event(COUNTS), plan.neighboring_relation, noise)
        sums_CM = self._sums.release(plan.event(TARGET), noise)
        return sums_CM / torch.tensor(divisors, dtype=torch.float64).unsqueeze(1), tuple(divisors)
