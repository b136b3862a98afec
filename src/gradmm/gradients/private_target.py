"""The private target: the mean gradient of each class's real rows, clipped and with noise, released once.

As `target.py`, but what real rows do to the result is bounded and covered (`privacy.mechanism` has the argument):

    per row: its gradient in the space, (weight, bias) as one vector of M numbers -> clip to C -> sum by class
    -> noise on the concatenation of all classes -> divide by public or noisy counts -> `ReleasedTarget`

and, where the writer is tilted, shares of words beside it (`private_unigrams`), from the same pass over the rows.

A row has to be a function of itself alone up to its last bit: padding, and batches of other sizes, change the
rounding of all rows in a batch. So rows go through the model one by one. For the same reason nothing about a row
may stop the run: one with too many tokens is cut to those that fit, one without tokens or with a gradient that is
not finite adds nothing. (Memory is the exception: a row that does not fit ends the run.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, NonFiniteError, TaskError
from gradmm.gradients.factors import Factors, as_one_set, inner
from gradmm.gradients.private_unigrams import PrivateUnigrams, released_unigrams
from gradmm.gradients.spaces import Space, SpaceConfig
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.gradients.unigrams import TokenShares
from gradmm.memory import BatchLimit
from gradmm.models import LanguageModel
from gradmm.privacy.config import PrivacyConfig
from gradmm.privacy.ledger import Ledger, release_once
from gradmm.privacy.ledger_lines import Spend
from gradmm.privacy.mechanism import ClippedSums, Noise, SystemNoise, counts_bound
from gradmm.privacy.planning import COUNTS, TARGET, WORDS, Plan

STATE = "private_target"
"""Name of the release in the run folder."""


class Shelf(Protocol):
    """Where a release is kept: a `RunFolder` is one."""

    def load_state(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Reads it; None if there is none."""

    def save_state(self, name: str, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Writes it, on the disk."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a class's target in a space."""

    rows: int
    """V' of the weight's gradient in the space."""
    columns: int
    """D' of it."""
    with_bias: bool
    """Whether the gradient of the head's bias (V') is part of the vector that is clipped and released."""

    @property
    def dimension(self) -> int:
        """M: numbers of one class's target."""
        return self.rows * self.columns + (self.rows if self.with_bias else 0)

    def flat(self, factors: Factors) -> Tensor:
        """Gradients of K sets as vectors (K, M), float64, each computed on its own."""
        return torch.stack([self._one(factors.sets([k])) for k in range(factors.num_sets)])

    def _one(self, factors: Factors) -> Tensor:
        weight_1VD, bias_1V = Factors(*(value.double() for value in factors.tensors())).dense()
        parts = [weight_1VD.flatten(), *([bias_1V.flatten()] if self.with_bias else [])]
        return torch.cat(parts)

    def target(self, mean_M: Tensor, device: torch.device, noise_std: float = 0.0) -> ClassTarget:
        """The inverse of `flat` for one mean, as float32, with noise on it; a bias that is no part of it is 0."""
        size = self.rows * self.columns
        bias_V = mean_M[size:] if self.with_bias else mean_M.new_zeros(self.rows)
        weight_VD = mean_M[:size].view(self.rows, self.columns)
        dense = weight_VD.float().to(device), bias_V.float().to(device)
        return ClassTarget(None, dense, noise_std=noise_std)


def planned_geometry(lm: LanguageModel, task: BoundTask, config: SpaceConfig, with_bias: bool) -> Geometry:
    """Sizes before the space is fitted; `subspace` may find fewer directions than it is asked for.

    Args:
        lm: the model, for the sizes of its head.
        task: its label tokens are what `verbaliser` keeps.
        config: the space's settings.
        with_bias: as of `geometry`.
    """
    rows, columns = lm.head.weight_VD.shape
    of_labels = len({token for ids in task.label_ids for token in ids})
    if config.loss == "verbalisers":
        rows = of_labels
    for name in config.maps:
        if name == "verbaliser":
            rows = of_labels
        if name == "contrasts":
            rows = max(1, rows - 1)
        if name in ("subspace", "sketch"):
            rows, columns = min(rows, config.rank), min(columns, config.rank)
    return Geometry(rows, columns, with_bias)


def geometry(lm: LanguageModel, space: Space, with_bias: bool) -> Geometry:
    """Sizes of a model's target in a space; no row is needed.

    Args:
        lm: the model, for the sizes of its head.
        space: maps the factors.
        with_bias: whether the distance uses the head's bias.
    """
    vocabulary, hidden = space.loss.size(lm.head), lm.head.weight_VD.shape[1]
    one = torch.zeros(1, 1, 1, device=lm.device)
    mapped = space(Factors(one.expand(1, 1, vocabulary), one.expand(1, 1, hidden), one[0]))
    return Geometry(mapped.r_KJV.shape[-1], mapped.h_KJD.shape[-1], with_bias)


def public_clip(public: Sequence[Factors], with_bias: bool, factor: float = 1.0) -> float:
    """C = factor * the median norm of the gradients of public texts.

    Args:
        public: in the space, one set per text; texts that the LM wrote, of all classes.
        with_bias: as of `geometry`.
        factor: of the median; the lower one of two.

    Raises:
        NonFiniteError: if the model's gradients are not finite, which on real rows would be silent.
        ConfigError: if at least half of the gradients are zero.
    """
    clip = factor * float(torch.cat([_norms(part, with_bias) for part in public]).median())
    if clip == 0:
        raise ConfigError("the median gradient of the LM's texts is zero in this space; choose other space.maps")
    return clip


def public_signal(public: Sequence[Sequence[Factors]], with_bias: bool, clip: float) -> float:
    """Norm of a class's mean clipped gradient over the clip, on public texts: what to expect of the rows.

    Args:
        public: as of `public_clip`, per class.
        with_bias: as of `geometry`.
        clip: C.

    Returns:
        That of the class where it is least; 1 at most.

    Raises:
        NonFiniteError: as `public_clip`.
    """
    means = []
    for own in public:
        scales = [(clip / _norms(part, with_bias)).clamp_max(1).to(part.weight_KJ) for part in own]
        clipped = [
            Factors(part.r_KJV, part.h_KJD, part.weight_KJ * scale_K.unsqueeze(1) / sum(p.num_sets for p in own))
            for part, scale_K in zip(own, scales, strict=True)
        ]
        means.append(float(_norms(as_one_set(clipped), with_bias)))
    return min(means) / clip


def _norms(sets: Factors, with_bias: bool) -> Tensor:
    """L2 norm of every gradient of public texts (K), float64, on the CPU."""
    exact = Factors(*(value.cpu().double() for value in sets.tensors()))
    found = inner(exact, exact)
    squares_K = found.weight_K + found.bias_K if with_bias else found.weight_K
    if not bool(squares_K.isfinite().all()):
        raise NonFiniteError(
            "a gradient of a text that the LM wrote is not finite; set model.dtype to float32 (or bfloat16, if it "
            "is float16)"
        )
    return squares_K.clamp_min(0).sqrt()


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


def planned_spends(
    plan: Plan, num_classes: int, parts: Mapping[str, tuple[float, int]], noise: Noise
) -> list[Spend]:
    """What the ledger will say of the plan's releases.

    Args:
        plan: the releases.
        num_classes: classes.
        parts: clip and numbers of one class, of each release; of counts they are known.
        noise: where it comes from.
    """
    known = {COUNTS: (counts_bound(plan.neighboring_relation), 1), **parts}
    found = []
    for one in plan.releases:
        bound, dimension = known[one.name][0], num_classes * known[one.name][1]
        drawn = noise.describe(dimension)
        found.append(Spend(one.name, one.event, bound, dimension, drawn, noise.is_private))
    return found


Sums = tuple[PrivateAccumulator, PrivateUnigrams | None]
"""What is released, before its noise: of gradients, and of shares of words where they are asked for."""


@torch.no_grad()
def private_target(
    lm: LanguageModel,
    task: BoundTask,
    rows: Sequence[Iterable[list[str]]],
    space: Space,
    config: PrivacyConfig,
    plan: Plan,
    clip: float,
    with_bias: bool,
    ledger: Ledger,
    shelf: Shelf,
    progress: Callable[[int], None] = lambda rows: None,
    noise: Noise = SystemNoise(),
    words_clip: float | None = None,
) -> tuple[ReleasedTarget, tuple[float, ...]]:
    """The private mean gradient per class, with shares of words if asked for: from the run folder if it is there,
    else released and paid for.

    Args:
        lm: the model at whose weights the gradients are taken.
        task: the rendering.
        rows: per class, batches of texts; not touched where the release is there already or the budget is used up.
        space: where the mean is taken; fitted on public text alone.
        config: what sums are divided by.
        plan: of one round, from `make_plan(config, shares_of(config, ...))`.
        clip: C, from the settings or `public_clip`.
        with_bias: whether the distance uses the head's bias.
        ledger: of the run folder.
        shelf: the run folder.
        progress: called with the number of rows that are done. What adds it up has an exact count of real rows.
        noise: a test's own makes the release not private.
        words_clip: from `public_words_clip`, where the plan has shares of words; None where it has none.

    Returns:
        The target, and what each class's sum was divided by: public or released.

    Raises:
        PrivacyBudgetError: if the budget does not hold the plan.
        ConfigError: if public counts are for other classes.
        RunFolderError: if release and ledger do not belong together.
        DataError: if a class has too many rows for an exact sum.
        OutOfMemoryError: if one row does not fit into memory.
    """
    sizes, classes, shares = geometry(lm, space, with_bias), len(rows), TokenShares(task, len(lm.embeddings_VE))
    divisors = config.divisors(task.task.label_names)
    parts = {TARGET: (clip, sizes.dimension)}
    if words_clip is not None:
        parts[WORDS] = words_clip, int(shares.words_V.sum())

    def prepare() -> Sums:
        total = PrivateAccumulator(sizes, classes, clip, lm.device)
        words = None if words_clip is None else PrivateUnigrams(shares, classes, words_clip)
        _add_rows((total, words), lm, task, rows, space, progress)
        return total, words

    def load() -> dict[str, Tensor] | None:
        kept = shelf.load_state(STATE)
        return None if kept is None else kept[0]

    kept = release_once(
        ledger,
        planned_spends(plan, classes, parts, noise),
        load,
        prepare,
        lambda sums: _drawn(sums, plan, divisors, noise),
        lambda drawn: shelf.save_state(STATE, drawn, {}),
    )
    noise_sum = plan.event(TARGET).noise_multiplier * clip
    targets = [
        sizes.target(mean_M, lm.device, noise_sum / count)
        for mean_M, count in zip(kept["means"].cpu(), kept["counts"].tolist(), strict=True)
    ]
    if words_clip is not None:
        own = zip(targets, kept["words"].cpu(), kept["words_std"].tolist(), strict=True)
        targets = [
            replace(target, unigrams=released_unigrams(shares, mean_W, std, words_clip))
            for target, mean_W, std in own
        ]
    return ReleasedTarget(tuple(targets), space), tuple(kept["counts"].tolist())


def _add_rows(
    sums: Sums,
    lm: LanguageModel,
    task: BoundTask,
    rows: Sequence[Iterable[list[str]]],
    space: Space,
    progress: Callable[[int], None],
) -> None:
    """Adds every row to the sums, alone: in a batch its numbers would depend on other rows."""
    total, words = sums
    for label, batches in enumerate(rows):
        for text in chain.from_iterable(batches):
            ids = _ids_of(task, text)
            total.add(label, _one_text(lm, task, space, ids, label), 1)
            if words is not None:
                words.add(label, ids)
            progress(1)


def _drawn(sums: Sums, plan: Plan, divisors: Sequence[float] | None, noise: Noise) -> dict[str, Tensor]:
    """What the run folder keeps: means and shares with noise, and what they were divided by."""
    total, words = sums
    means_CM, counts = total.release(plan, divisors, noise)
    drawn = {"means": means_CM, "counts": torch.tensor(counts, dtype=torch.float64)}
    if words is not None:
        drawn["words"], drawn["words_std"] = words.release(plan, counts, noise)
    return drawn


def _ids_of(task: BoundTask, text: str) -> list[int]:
    """Tokens of a text, cut to the context; none where the task has no tokens for it."""
    try:
        return task.text_ids(text)[: task.room]
    except TaskError:  # names the text
        return []


def _one_text(lm: LanguageModel, task: BoundTask, space: Space, ids: list[int], label: int) -> Factors | None:
    """Factors of one text, alone in its batch; None of one without tokens."""
    if not ids:
        return None
    batch = task.collate([ids], [label]).to(lm.device)
    (factors,) = BatchLimit(1).map(
        lambda one: space.factors(lm, batch, batch.embed(lm.embeddings_VE), 1), [batch], "computing the target"
    )
    return factors
