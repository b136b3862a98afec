"""Private shares of words: of each class's rows, clipped and with noise, released once beside the target.

A row's shares of words are a vector of W numbers whose L2 norm is at most 1, and about one over the root of the
number of its words. It goes the way of a gradient (`privacy.mechanism`): clip to C, sum by class, noise on all
classes' sums together, divide. It depends on the row alone. What follows is post-processing (`denoising`); until
then a share may be below 0.

C is the median norm of texts that the LM wrote. Clipping shortens all shares of a row alike; the texts that are
held against the release are counted with the same clip (`UnigramCounter`), so that it favours neither side.

Shape suffixes: C classes, V vocabulary, W words.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.errors import ConfigError
from gradmm.gradients.unigrams import FLOOR, TokenShares, Unigrams
from gradmm.privacy.mechanism import ClippedSums, Noise
from gradmm.privacy.planning import WORDS, Plan


def public_words_clip(shares: TokenShares, texts_ids: Sequence[Sequence[int]]) -> float:
    """C: the median norm of shares of words in texts that the LM wrote; the lower one of two.

    Raises:
        ConfigError: if at least half of them have no word.
    """
    clip = float(torch.stack([shares.of_words(ids).norm() for ids in texts_ids]).median())
    if clip == 0:
        raise ConfigError(
            "half of the LM's texts have no word whose share could be released; set writer.unigram_step to 0"
        )
    return clip


class PrivateUnigrams:
    """Clipped sums of rows' shares of words; what leaves has noise.

    Args:
        shares: of a text.
        num_classes: C.
        clip: as of `public_words_clip`.
    """

    def __init__(self, shares: TokenShares, num_classes: int, clip: float) -> None:
        self._shares = shares
        self._sums = ClippedSums(num_classes, int(shares.words_V.sum()), clip)

    def add(self, label: int, ids: Sequence[int]) -> None:
        """Adds a row of a class, as tokens; one without any adds nothing."""
        self._sums.add(label, self._shares.of_words(ids).unsqueeze(0))

    def release(self, plan: Plan, divisors: Sequence[float], noise: Noise) -> tuple[Tensor, Tensor]:
        """Draws the noise, once: mean shares (C, W), and the standard deviation of their noise (C), float64.

        Args:
            plan: the events that were spent.
            divisors: public or released numbers of rows.
            noise: where it comes from.
        """
        event, divisors_C = plan.event(WORDS), torch.tensor(divisors, dtype=torch.float64)
        sums_CW = self._sums.release(event, noise)
        return sums_CW / divisors_C.unsqueeze(1), event.noise_multiplier * self._sums.clip / divisors_C


def released_unigrams(shares: TokenShares, mean_W: Tensor, std: float, clip: float) -> Unigrams:
    """What a class's writer is tilted by, from what was released of it.

    Args:
        shares: whose words they are.
        mean_W: mean shares with noise.
        std: of the noise.
        clip: C.
    """
    share_V = torch.zeros(shares.vocab_size, dtype=torch.float64)
    share_V[shares.words_V] = mean_W
    return Unigrams(share_V, FLOOR + std, clip, std)
