"""Proj: from vectors to the readable text nearest to them (section 4.2 of the paper).

Decodes left to right. At each position, the token v that is chosen is

    proximal                the one with the largest log p(v) - nearness/2 |x - e_v|^2: the proximal step of the
                            LM's negative log-likelihood, taken greedily (the default),
    nearest_then_probable   of the k tokens nearest to the vector, the one most probable for the LM
                            after the class's prompt and the tokens so far (the official code), or
    probable_then_nearest   of the k tokens most probable for the LM, the one nearest to the vector (the paper).

Shape suffixes: N texts, T positions, K candidates, V vocabulary, E embedding size.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradmm.decoding import PromptCache, decode


class ProjectionConfig(BaseModel):
    """How vectors become text."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    order: Literal["proximal", "nearest_then_probable", "probable_then_nearest"] = "proximal"
    """How nearness and probability are weighed; see the module's head."""
    nearness: float = Field(1.0, gt=0)
    """`proximal` maximises log-probability - nearness / 2 * squared distance (or + nearness * cosine)."""
    k: int = Field(200, ge=1)
    """Tokens on the short list."""
    metric: Literal["cosine", "euclidean"] = "euclidean"
    """What `nearest` means between a vector and a token's embedding."""
    end_sentence: bool = True
    """Let the last token of every text be a period, exclamation or question mark."""


class Vocabulary:
    """Which tokens may stand where.

    Args:
        allowed_V: tokens that a text may hold.
        ends_V: tokens that end a sentence, or None where any token may come last.
        starts: from `bare_starts` where a text's first word is another token than after a prompt, else None.
    """

    def __init__(self, allowed_V: Tensor, ends_V: Tensor | None, starts: tuple[Tensor, Tensor] | None) -> None:
        self.allowed_V = allowed_V
        ends = None if ends_V is None else ends_V & allowed_V
        self.ends_V = ends if ends is not None and bool(ends.any()) else None
        first_V = allowed_V if starts is None else allowed_V & starts[0]
        # Bans may leave no bare first word; then any allowed token opens a text.
        self.first_V = first_V if bool(first_V.any()) else allowed_V
        self.shown_V = None if starts is None else starts[1]

    def mask(self, t: int, lengths_N: Tensor) -> Tensor:
        """Tokens allowed at position t of texts of these lengths (N, V)."""
        mask_NV = (self.first_V if t == 0 else self.allowed_V).expand(len(lengths_N), -1)
        if self.ends_V is None or t == 0:
            return mask_NV
        return torch.where((lengths_N == t + 1)[:, None], self.ends_V, mask_NV)


class Projector:
    """Projects vectors onto readable token sequences.

    Args:
        prompts: the class prompts' caches.
        embeddings_VE: the embedding table.
        vocabulary: which tokens may stand where.
        config: order, k and metric.
    """

    def __init__(
        self, prompts: PromptCache, embeddings_VE: Tensor, vocabulary: Vocabulary, config: ProjectionConfig
    ) -> None:
        self.prompts = prompts
        self.vocabulary = vocabulary
        self.config = config
        table_VE = embeddings_VE[: vocabulary.allowed_V.shape[0]].float()
        # For the order of nearness |v|^2 is a constant and so, for the cosine, is |v|.
        if config.metric == "cosine":
            table_VE = table_VE / table_VE.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self._table_VE = table_VE
        self._offset_V = table_VE.square().sum(1) / 2 if config.metric == "euclidean" else None

    @torch.no_grad()
    def __call__(self, vectors_NTE: Tensor, lengths_N: Tensor, labels_N: Tensor) -> Tensor:
        """Projects N texts.

        Args:
            vectors_NTE: one vector per position (N, T, E).
            lengths_N: tokens of each text; positions beyond are decoded and mean nothing.
            labels_N: class of each text.

        Returns:
            Tokens (N, T).
        """
        k = min(self.config.k, self._table_VE.shape[0])
        nearest_first = self.config.order == "nearest_then_probable"
        shown_V = self.vocabulary.shown_V

        def choose(t: int, rows: Tensor, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
            probable_NV = logits_NV[:, shown_V] if t == 0 and shown_V is not None else logits_NV
            near_NV = self.nearness(vectors_NTE[rows, t])
            short_NV, rank_NV = (near_NV, probable_NV) if nearest_first else (probable_NV, near_NV)
            if self.config.order == "proximal":
                short_NV = rank_NV = probable_NV + self.config.nearness * near_NV
            mask_NV = self.vocabulary.mask(t, lengths_N[rows])
            top = short_NV.masked_fill(~mask_NV, -torch.inf).topk(k, dim=-1, sorted=False)
            scores_NK = rank_NV.gather(1, top.indices).masked_fill(top.values == -torch.inf, -torch.inf)
            written_N = top.indices.gather(1, scores_NK.argmax(1, keepdim=True))[:, 0]
            return written_N, shown_V[written_N] if t == 0 and shown_V is not None else written_N

        return decode(self.prompts, labels_N, vectors_NTE.shape[1], choose)

    def nearness(self, vectors_ME: Tensor) -> Tensor:
        """Minus half the squared distance, up to a constant along V; or the cosine (M, V)."""
        vectors_ME = vectors_ME.float()
        if self.config.metric == "cosine":
            vectors_ME = vectors_ME / vectors_ME.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        near_MV = vectors_ME @ self._table_VE.T
        return near_MV if self._offset_V is None else near_MV - self._offset_V
