"""Baselines that choose real rows by their features: herding and k-center.

Features are the states that the head reads the label from. What is chosen depends on the rows alone, not on their
order, but for rows that are the same: of these, and of others that are equally good but for rounding, the first
is taken. All is computed in float64, with one copy of the features and numbers per row beside it.

Shape suffixes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.errors import ConfigError, NonFiniteError
from gradmm.labelling import Reader
from gradmm.memory import BatchLimit
from gradmm.seeds import make_generator
from gradmm.training.rows import token_ids

_TIE = 1e-9  # relative: values that are nearer to each other differ by rounding, which the order of rows changes


def herding(features_ND: Tensor, count: int) -> list[int]:
    """Greedily the rows whose mean is nearest to the mean of all.

    Herding (Welling, 2009), which on vectors of one length is this greed (Chen, Welling and Smola, 2010). So
    features are divided by their length first, as exemplars are chosen in iCaRL (Rebuffi et al., 2017; Euclidean
    distance, the mean not divided again, no row twice).

    Args:
        features_ND: of the rows of one class.
        count: how many to choose.

    Returns:
        `count` different rows, in the order in which they were chosen: a smaller choice is the start of it.

    Raises:
        ConfigError: if `count` is not from 1 to N.
        NonFiniteError: if a feature is NaN or infinite.
    """
    unit_ND = torch.nn.functional.normalize(_checked(features_ND, count), dim=1)
    mean_D, square_N = unit_ND.mean(0), unit_ND.square().sum(1)
    sum_D, is_free_N, chosen = torch.zeros_like(mean_D), torch.ones(len(unit_ND), dtype=torch.bool), list[int]()
    for size in range(1, count + 1):
        # |size * mean - sum - x|^2 without what is the same for every x
        closeness_N = 2 * (unit_ND @ (size * mean_D - sum_D)) - square_N
        chosen.append(_take_best(closeness_N, is_free_N, size))  # its terms are as long as `size` rows of length 1
        sum_D += unit_ND[chosen[-1]]
    return chosen


def k_center(features_ND: Tensor, count: int, start: int | None = None) -> list[int]:
    """Greedily the row that is farthest from all that are chosen.

    Farthest-first traversal (Gonzalez, 1985), the k-center greedy of Sener and Savarese (2018): the farthest that
    any row is from its nearest chosen one is at most twice what the best choice reaches. Euclidean distance of
    features as they are, as there.

    Args:
        features_ND: of the rows of one class.
        count: how many to choose.
        start: the row to begin with, such as from `draw_start`; None begins at the one nearest to the mean.

    Returns:
        `count` different rows, in the order in which they were chosen: a smaller choice is the start of it.

    Raises:
        ConfigError: if `count` is not from 1 to N.
        NonFiniteError: if a feature is NaN or infinite.
    """
    exact_ND = _checked(features_ND, count)
    assert start is None or 0 <= start < len(exact_ND), (start, len(exact_ND))
    is_free_N, chosen = torch.ones(len(exact_ND), dtype=torch.bool), list[int]()
    if start is None:
        start = _take_best(-_distances(exact_ND, exact_ND.mean(0)), is_free_N)
    nearest_N = torch.full((len(exact_ND),), torch.inf, dtype=torch.float64)
    while True:
        is_free_N[start] = False
        chosen.append(start)
        if len(chosen) == count:
            return chosen
        nearest_N = torch.minimum(nearest_N, _distances(exact_ND, exact_ND[start]))
        start = _take_best(nearest_N, is_free_N)


def draw_start(num_rows: int, seed: int) -> int:
    """A row for `k_center` to begin with, for a choice that differs by seed."""
    return int(torch.randint(num_rows, (), generator=make_generator(seed, "k-center")))


@torch.no_grad()
def features(
    lm: Reader, task: BoundTask, label: int, texts: Sequence[str], limit: BatchLimit | None = None
) -> Tensor:
    """The last hidden state, where the first token of the label is predicted: what the head tells classes from.

    Args:
        lm: the language model, in evaluation mode.
        task: the rendering.
        label: the texts' class; it stands behind that place, and so plays no part but in messages.
        texts: at least one.
        limit: texts that go through the model at once; those of like length go together.

    Returns:
        (N, D), float32, on the CPU.

    Raises:
        DataError: if a text is empty or does not fit the model's context.
    """
    ids = token_ids(task, label, texts)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))

    def some(part: Sequence[int]) -> Tensor:
        batch = task.collate([ids[i] for i in part], [label] * len(part)).to(lm.device)
        return lm.read(batch.ids_NS, batch.predict_at_NL[:, :1])[:, 0].float().cpu()

    sorted_ND = torch.cat(list((limit or BatchLimit()).map(some, order, "computing features")))
    return torch.empty_like(sorted_ND).index_copy_(0, torch.tensor(order), sorted_ND)


def _checked(features_ND: Tensor, count: int) -> Tensor:
    if not 1 <= count <= len(features_ND):
        raise ConfigError(f"{count} rows cannot be chosen from {len(features_ND)}; ask for 1 to that many")
    if not bool(features_ND.isfinite().all()):
        row = int((~features_ND.isfinite()).any(1).nonzero()[0])
        raise NonFiniteError(f"the features of row {row} are not finite; set model.dtype to float32 or bfloat16")
    return features_ND.double()


def _distances(features_ND: Tensor, point_D: Tensor) -> Tensor:
    """Euclidean (N), from differences: exactly 0 of rows that are the same."""
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(features_ND, point_D[None], compute_mode=mode)[:, 0]


def _take_best(values_N: Tensor, is_free_N: Tensor, scale: float = 0.0) -> int:
    """The first of the free rows whose value is the largest; it is free no longer.

    `scale` is the size of what cancelled in the values, where it can be more than the size of the values.
    """
    free_N = values_N.masked_fill(~is_free_N, -torch.inf)
    slack = _TIE * max(scale, float(values_N[is_free_N].abs().max()))
    best = int((free_N >= free_N.max() - slack).nonzero()[0])
    is_free_N[best] = False
    return best
