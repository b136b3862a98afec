"""Spaces: a loss, and linear maps on the factors of its gradient, r -> A r and h -> B h, so that G -> A G B^T.

What is matched is then the gradient as the space sees it. Everything downstream of a target (distances,
solvers, selection, mechanisms) gets mapped factors alone, and so works in every space.

    verbaliser   A keeps the rows of the label tokens: C numbers instead of V
    contrasts    A is an orthonormal basis of the vectors whose entries sum to 0, as those of r do with the loss
                 over the verbalisers: one number fewer, and no inner product changes
    whitened     h times (second moment of public text + ridge)^(-1/2): natural-gradient matching; evens out the
                 directions that would dominate a cosine
    subspace     the top principal directions (about 0, not the mean) of r and of h over public text
    sketch       random projections of r and of h (Johnson and Lindenstrauss 1984); a factor that is no longer
                 than the sketch stays as it is

The gradient of the head's bias, grad_b = sum_j w_j r_j, becomes A grad_b; B has no part in it. Public text is
what the LM writes after the class prompts: no real row has a part in it. Maps are composed in the order in which
they are named; each is fitted, in float64, on factors that the ones before have mapped.

Last of all, h may be centred: G -> G - grad_b m^T takes away what every text of a class has in common, which the
model unlearns in the first steps of a training by a bias. Its m is the target's own (`ReleasedTarget.centred`):
the mean of public text, which is of another kind than the rows, leaves more than it takes away.

Shape suffixes: J pairs, V and D entries of r and h before a map, M and P after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from gradmm.data.task import Batch
from gradmm.gradients.factors import Factors, label_factors
from gradmm.gradients.losses import VOCABULARY, Loss, VerbaliserLoss
from gradmm.heads import Head
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel

LossName = Literal["verbalisers", "vocabulary"]
MapName = Literal["verbaliser", "contrasts", "whitened", "subspace", "sketch"]
NEED_PUBLIC: tuple[MapName, ...] = ("whitened", "subspace")
_KEEP_TOKENS = ("whitened",)  # after these, the entries of r are still tokens, and all of them
_KEEP_SUM = ("whitened", "verbaliser")  # after these, those of a loss over the verbalisers still sum to 0
_MOST = 4096  # public texts of all classes that are looked at
_LOSS = "loss"  # how its tensors are marked in a checkpoint
_NEGLIGIBLE = 1e-10  # of the largest squared singular value: below it a direction is rounding


class SpaceConfig(BaseModel):
    """In which space gradients are matched."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    loss: LossName = "verbalisers"
    """Whose gradient is matched: cross-entropy over the classes' verbalisers, calibrated on what the LM writes, or
    over the whole vocabulary (the paper's)."""
    maps: tuple[MapName, ...] = ("whitened",)
    """Maps in their order; none is the identity, the head's whole gradient."""
    centred: bool = True
    """Leave out what all texts of a class have in common, which a training unlearns in its first steps."""
    ridge: float = Field(0.1, gt=0)
    """Of `whitened`, relative to the mean eigenvalue of the second moment."""
    rank: int = Field(64, ge=1)
    """Directions that `subspace` keeps, and that `sketch` projects to, of r and of h each."""
    public_texts: int = Field(256, ge=1)
    """Texts per class that the LM writes to fit the maps on."""

    @model_validator(mode="after")
    def _rows_are_tokens(self) -> SpaceConfig:
        for at, name in enumerate(self.maps):
            before = [other for other in self.maps[:at] if other not in _KEEP_TOKENS]
            if name == "verbaliser" and before:
                raise ValueError(
                    f"maps: 'verbaliser' picks the rows of tokens, and after {before[0]!r} there are none; "
                    "name it first, and once"
                )
        return self

    @model_validator(mode="after")
    def _entries_sum_to_0(self) -> SpaceConfig:
        if "contrasts" not in self.maps:
            return self
        takes = "maps: 'contrasts' takes entries of r that sum to 0"
        if self.loss != "verbalisers":
            raise ValueError(f"{takes}; leave it out with loss {self.loss!r}, whose do not, or take verbalisers")
        before = [name for at, name in enumerate(self.maps) if "contrasts" in self.maps[at + 1 :]]
        for name in before:
            if name not in _KEEP_SUM:
                raise ValueError(f"{takes}, and after {name!r} they do not; name it before, and once")
        return self

    @property
    def needs_public(self) -> bool:
        """Whether the loss or a map has to be fitted on public text."""
        return self.loss == "verbalisers" or any(name in NEED_PUBLIC for name in self.maps)

    @property
    def is_identity(self) -> bool:
        """Whether there is nothing to fit or to draw: the head's whole gradient over the vocabulary."""
        return not self.maps and not self.needs_public

    @property
    def tells_states(self) -> bool:
        """Whether a target says of every class how far its mean hidden state is from that of another."""
        return "whitened" in self.maps and self.centred

    def public_count(self, num_classes: int) -> int:
        """Public texts of every class that are looked at."""
        return max(1, min(self.public_texts, _MOST // num_classes))


@dataclass(frozen=True)
class LinearMap:
    """One map; None leaves the factor as it is."""

    r_rows_M: Tensor | None = None
    """Rows of r to keep, by index."""
    r_MV: Tensor | None = None
    """A."""
    h_shift_D: Tensor | None = None
    """Taken from h before B."""
    h_PD: Tensor | None = None
    """B."""

    def __call__(self, r: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Maps factors (..., V) and (..., D)."""
        return self.map_r(r), self.map_h(h)

    @property
    def shifted_back(self) -> LinearMap:
        """The inverse of a map that only shifts h."""
        assert self.h_shift_D is not None, "shifts h"
        assert self.h_PD is self.r_MV is self.r_rows_M is None, "and does nothing else"
        return LinearMap(h_shift_D=-self.h_shift_D)

    def map_r(self, r: Tensor) -> Tensor:
        """Maps r (..., V)."""
        if self.r_rows_M is not None:
            r = r[..., self.r_rows_M]
        return r if self.r_MV is None else r @ self.r_MV.T

    def map_h(self, h: Tensor) -> Tensor:
        """Maps h (..., D)."""
        if self.h_shift_D is not None:
            h = h - self.h_shift_D
        return h if self.h_PD is None else h @ self.h_PD.T


class Space:
    """A loss, and maps of its gradient's factors, one after the other; none is the identity."""

    def __init__(self, maps: Sequence[LinearMap] = (), loss: Loss = VOCABULARY) -> None:
        self.maps, self.loss = tuple(maps), loss

    def then(self, one: LinearMap) -> Space:
        """The space with a map more."""
        return Space((*self.maps, one), self.loss)

    def factors(
        self,
        lm: LanguageModel,
        batch: Batch,
        embeds_NSE: Tensor,
        texts_per_set: int,
        limit: BatchLimit | None = None,
    ) -> Factors:
        """`label_factors` of the space's loss, as the space sees them."""
        return self(label_factors(lm, batch, embeds_NSE, texts_per_set, limit, self.loss))

    def map_h(self, h: Tensor) -> Tensor:
        """Hidden states (..., D) as the space sees them."""
        for one in self.maps:
            h = one.map_h(h)
        return h

    def token(self, token: int, head: Head) -> Tensor:
        """The r that is 1 for one token and 0 for all others, as the space sees it (M)."""
        r_V = torch.zeros(self.loss.size(head), device=head.weight_VD.device)
        r_V[self.loss.index(token)] = 1
        for one in self.maps:
            r_V = one.map_r(r_V)
        return r_V

    def __call__(self, factors: Factors) -> Factors:
        """The factors as the space sees them; gradients flow through."""
        r_KJV, h_KJD = factors.r_KJV, factors.h_KJD
        for one in self.maps:
            r_KJV, h_KJD = one(r_KJV, h_KJD)
        return replace(factors, r_KJV=r_KJV, h_KJD=h_KJD)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint; `from_tensors` reads it back."""
        kept = {
            f"{at}.{name}": value.contiguous()
            for at, one in enumerate(self.maps)
            for name, value in vars(one).items()
            if value is not None
        }
        if isinstance(self.loss, VerbaliserLoss):
            kept |= {f"{_LOSS}.{name}": value for name, value in self.loss.tensors().items()}
        return kept

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> Space:
        """Inverse of `tensors`."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            at, name = key.split(".")
            parts.setdefault(at, {})[name] = value
        loss = VerbaliserLoss(**parts.pop(_LOSS)) if _LOSS in parts else VOCABULARY
        return Space([LinearMap(**parts[at]) for at in sorted(parts, key=int)], loss)


IDENTITY = Space()


def fit_space(
    config: SpaceConfig,
    public: Factors,
    label_ids: Sequence[int],
    generator: torch.Generator,
    loss: Loss = VOCABULARY,
) -> Space:
    """Fits the maps that the settings name.

    Args:
        config: which maps.
        public: factors of public texts, of any number of sets; every pair counts alike, padding (weight 0) not at
            all. For the sizes alone where no map is fitted.
        label_ids: where r has the tokens of verbalisers.
        generator: random generator on the CPU, for `sketch`.
        loss: that the factors are of.
    """
    assert bool((public.weight_KJ > 0).any()), "no public text"
    maps: list[LinearMap] = []
    for name in config.maps:
        seen = Space(maps)(public)
        r_JV, h_JD = seen.r_KJV.flatten(0, 1), seen.h_KJD.flatten(0, 1)
        weight_J = seen.weight_KJ.flatten()
        real = weight_J > 0  # padding stands where a verbaliser is shorter
        maps.append(_fit(name, config, r_JV[real], h_JD[real], label_ids, generator))
    return Space(maps, loss)


def _fit(
    name: MapName,
    config: SpaceConfig,
    r_JV: Tensor,
    h_JD: Tensor,
    label_ids: Sequence[int],
    generator: torch.Generator,
) -> LinearMap:
    if name == "verbaliser":
        return LinearMap(r_rows_M=torch.tensor(sorted(set(label_ids)), device=r_JV.device))
    if name == "contrasts":
        return LinearMap(r_MV=_contrasts(r_JV))
    if name == "whitened":
        return LinearMap(h_PD=whitening(h_JD, config.ridge))
    if name == "subspace":
        return LinearMap(r_MV=_principal(r_JV, config.rank), h_PD=_principal(h_JD, config.rank))
    return LinearMap(r_MV=_sketch(r_JV, config.rank, generator), h_PD=_sketch(h_JD, config.rank, generator))


def whitening(h_JD: Tensor, ridge: float) -> Tensor:
    """(M + ridge * mean eigenvalue of M * I)^(-1/2), symmetric (D, D), with M the second moment of h."""
    values_D, vectors_DD = torch.linalg.eigh(_gram(h_JD.T) / len(h_JD))
    values_D = values_D.clamp_min(0)
    root_D = (values_D + ridge * values_D.mean().clamp_min(1e-30)).rsqrt()
    inverse_DD: Tensor = (vectors_DD * root_D) @ vectors_DD.T
    return inverse_DD.to(h_JD)


def _contrasts(r_JV: Tensor) -> Tensor:
    """Helmert contrasts as rows (V - 1, V): the n-th is the mean of the first n entries less the next one, scaled
    to norm 1. A single entry stays as it is.
    """
    size = r_JV.shape[1]
    if size == 1:
        return r_JV.new_ones(1, 1)
    number_M = torch.arange(1, size, dtype=torch.float64)
    rows_MV = torch.tril(torch.ones(size, size, dtype=torch.float64))[:-1] / number_M.unsqueeze(1)
    rows_MV[torch.arange(size - 1), torch.arange(1, size)] = -1
    scaled_MV: Tensor = rows_MV * (number_M / (number_M + 1)).sqrt().unsqueeze(1)
    return scaled_MV.to(r_JV)


def _principal(x_JV: Tensor, rank: int) -> Tensor:
    """The top right singular vectors as rows (M, V), M = min(rank, rank of x)."""
    tall = x_JV.shape[0] >= x_JV.shape[1]
    values, vectors = torch.linalg.eigh(_gram(x_JV.T if tall else x_JV))  # of the smaller of the two
    count = max(1, min(rank, int((values > _NEGLIGIBLE * values[-1]).sum())))
    top_M, top = values[-count:].clamp_min(1e-30), vectors[:, -count:]
    rows_MV: Tensor = top.T if tall else (top * top_M.rsqrt()).T @ x_JV.cpu().double()
    return rows_MV.to(x_JV).contiguous()


def _gram(x_JV: Tensor) -> Tensor:
    """Inner products of rows (J, J): float64, and so on the CPU, as not every device has it."""
    x_JV = x_JV.cpu().double()
    return x_JV @ x_JV.T


def _sketch(x_JV: Tensor, rank: int, generator: torch.Generator) -> Tensor | None:
    """Normal entries of variance 1/rank (M, V): inner products are kept in expectation."""
    if x_JV.shape[1] <= rank:
        return None
    entries_MV: Tensor = torch.randn(rank, x_JV.shape[1], generator=generator) / rank**0.5
    return entries_MV.to(x_JV)
