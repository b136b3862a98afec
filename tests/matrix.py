"""What must hold for every model with every tokenizer; the suite asserts it and the benchmark prints it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

import gradmm
import oracles
from gradmm.config import GenerateConfig
from gradmm.continuation import find_cache
from gradmm.data.rows import LabelledData
from gradmm.data.sources import load_data
from gradmm.data.task import BoundTask, Task
from gradmm.decoding import PromptCache, decode
from gradmm.gradients.factors import inner_dense, label_factors
from gradmm.models import LanguageModel, load_model
from gradmm.result import Result
from gradmm.solvers.projection import ProjectionConfig, Projector, Vocabulary

TEXTS = ("A film.", "The story is dull and bad, and the film makes me sad.", "happy", "A great end. I feel fine")
LABELS = (2, 0, 1, 1)
MIXED = (" bad", " happy", " surprised")
"""Verbalisers of one, two and eight tokens in the small tokenizer."""
TASK = Task(
    label_names=("bad", "happy", "surprised"),
    verbalisers=MIXED,
    instructions=("A bad film:", "This makes me feel happy. I feel happy:", "So:"),
)
ROWS = [
    *[(f"The film is bad, a dull story {n}.", 0) for n in range(3)],
    *[(f"I feel happy, so fine {n}.", 1) for n in range(3)],
    *[(f"What a story, what an end {n}!", 2) for n in range(3)],
]
TINY = {
    **{"solver": "admm", "texts_per_class": 2, "block_size": 2, "initial": {"candidates": 1}, "references": False},
    **{"admm": {"n_outer": 1, "n_inner": 1}, "projection": {"end_sentence": False}, "space": {"public_texts": 3}},
    "lengths": {"distribution": "uniform", "min_tokens": 3, "max_tokens": 4},
}


def bind(lm: LanguageModel) -> BoundTask:
    """A task with prompts of different lengths and, where the tokenizer cuts words, labels of several tokens."""
    return BoundTask(TASK, lm.tokenizer, lm.max_length)


def rows_of(task: BoundTask, texts: tuple[str, ...], labels: tuple[int, ...]) -> tuple[list[list[int]], list[int]]:
    """Rendered rows, and how many label tokens each has: what the oracle takes."""
    rows = [task.render(text, label) for text, label in zip(texts, labels, strict=True)]
    return rows, [len(task.label_ids[label]) for label in labels]


def closed_form_error(lm: LanguageModel, task: BoundTask) -> float:
    """The largest relative error of the closed form, text by text, against autograd."""
    batch = task.collate([task.text_ids(text) for text in TEXTS], LABELS)
    weights_KVD, biases_KV = label_factors(lm, batch, batch.embed(lm.embeddings_VE), 1).dense()
    errors = []
    for i, (text, label) in enumerate(zip(TEXTS, LABELS, strict=True)):
        weight_VD, bias_V = oracles.materialised_head_gradient(lm, *rows_of(task, (text,), (label,)))
        errors.append(oracles.relative_error(weights_KVD[i], weight_VD))
        if bias_V is not None:
            errors.append(oracles.relative_error(biases_KV[i], bias_V))
    return max(errors)


def input_gradients(lm: LanguageModel, task: BoundTask) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of `<G, T>` with respect to the texts' vectors, by one backward pass and by two.

    Returns:
        Ours and the oracle's (N, T, E), and where there is a text (N, T).
    """
    labels = LABELS[:3]
    texts_ids = [task.text_ids(text) for text in TEXTS[:3]]
    batch = task.collate(texts_ids, labels)
    lengths, start = [len(ids) for ids in texts_ids], batch.text_start
    draw = torch.Generator().manual_seed(0)
    text_NTE = torch.randn(3, max(lengths), lm.embeddings_VE.shape[1], generator=draw) * lm.embeddings_VE.std()
    text_NTE.requires_grad_(True)
    target_VD = torch.randn(lm.head.weight_VD.shape, generator=draw)

    mine = label_factors(lm, batch, batch.embed(lm.embeddings_VE, text_NTE), 3)
    (found_NTE,) = torch.autograd.grad(inner_dense(mine, target_VD, target_VD[:, 0]).weight_K.sum(), text_NTE)

    with torch.no_grad():  # RecurrentGemma keeps its last state, graph and all, and so could not be copied
        lm.hidden(lm.embeddings_VE[batch.ids_NS], batch.predict_at_NL)
    rows, counts = rows_of(task, TEXTS[:3], labels)
    embeds = []
    for i, row in enumerate(rows):
        own_SE = lm.embeddings_VE[torch.tensor(row)]
        embeds.append(torch.cat([own_SE[:start], text_NTE[i, : lengths[i]], own_SE[start + lengths[i] :]]))
    weight_VD, _ = oracles.materialised_head_gradient(lm, rows, counts, embeds)
    (expected_NTE,) = torch.autograd.grad((weight_VD * target_VD).sum(), text_NTE)
    return found_NTE, expected_NTE, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def directional_derivatives(lm: LanguageModel, task: BoundTask, directions: int = 4) -> tuple[Tensor, Tensor]:
    """The derivative of `<G, T>` along random directions: ours, and by differences of the oracle in float64."""
    exact = LanguageModel(copy.deepcopy(lm.model).double(), lm.tokenizer)
    batch = task.collate([task.text_ids(text) for text in TEXTS], LABELS)
    rows, counts = rows_of(task, TEXTS, LABELS)
    draw = torch.Generator().manual_seed(0)
    target_VD = torch.randn(lm.head.weight_VD.shape, generator=draw)
    embeds_NSE = batch.embed(lm.embeddings_VE).requires_grad_(True)
    mine = label_factors(lm, batch, embeds_NSE, len(TEXTS))
    (found_NSE,) = torch.autograd.grad(inner_dense(mine, target_VD, target_VD[:, 0]).weight_K.sum(), embeds_NSE)

    def value(embeds_NSE: Tensor) -> Tensor:
        embeds = [
            torch.cat([own[: len(row) - 1], exact.embeddings_VE[row[-1:]]])
            for own, row in zip(embeds_NSE, rows, strict=True)
        ]
        return (oracles.materialised_head_gradient(exact, rows, counts, embeds)[0].detach() * target_VD).sum()

    pairs, start = [], embeds_NSE.detach().double()
    for _ in range(directions):
        step_NSE = 1e-3 * lm.embeddings_VE.std() * torch.randn(start.shape, generator=draw)
        expected = (value(start + step_NSE) - value(start - step_NSE)) / 2
        pairs.append(torch.stack([(found_NSE * step_NSE).sum().double(), expected]))
    found, expected = torch.stack(pairs).T
    return found, expected


def decoding_error(lm: LanguageModel, task: BoundTask, steps: int = 6) -> float:
    """The largest relative difference of logits with and without the cache, the same tokens being shown."""
    labels_N = torch.tensor([2, 1, 0, 1, 2, 0])
    ids_NT = torch.randint(2, 100, (6, steps), generator=torch.Generator().manual_seed(0))
    found: list[dict[tuple[int, int], Tensor]] = []
    for prompts in (PromptCache(lm, task.instruction_ids), without_cache(lm, task.instruction_ids)):
        seen: dict[tuple[int, int], Tensor] = {}

        def show(t: int, rows: Tensor, logits_NV: Tensor, seen: dict = seen) -> tuple[Tensor, Tensor]:
            seen.update({(t, row): logits for row, logits in zip(rows.tolist(), logits_NV, strict=True)})
            return ids_NT[rows, t], ids_NT[rows, t]

        decode(prompts, labels_N, steps, show)
        found.append(seen)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 6 * steps
    return max(oracles.relative_error(found[0][key], logits) for key, logits in found[1].items())


def projects_like_recomputation(lm: LanguageModel, task: BoundTask, length: int = 6) -> bool:
    """Whether projection chooses the tokens that it chooses without any cache.

    Samples of a large vocabulary are no such test: rounding moves a number to the next of many like tokens.
    """
    labels_N = torch.tensor([2, 1, 0, 1, 2, 0])
    draw = torch.Generator().manual_seed(0)
    vectors_NTE = torch.randn(6, length, lm.embeddings_VE.shape[1], generator=draw) * lm.embeddings_VE.std()
    vocabulary = Vocabulary(torch.ones(lm.vocab_size, dtype=torch.bool), None, None)
    found = [
        Projector(prompts, lm.embeddings_VE, vocabulary, ProjectionConfig(nearness=0.5))(
            vectors_NTE, torch.full((6,), length), labels_N
        )
        for prompts in (PromptCache(lm, task.instruction_ids), without_cache(lm, task.instruction_ids))
    ]
    return torch.equal(*found)


def cache_argument(lm: LanguageModel, task: BoundTask) -> str | None:
    """The argument that takes the model's cache, if it is of use."""
    return find_cache(lm.body, torch.tensor(task.instruction_ids[:1]))[0]


def without_cache(lm: LanguageModel, prompts: list[list[int]]) -> PromptCache:
    """Prompts after which whole sequences are read again at every step."""
    with patch("gradmm.decoding.find_cache", lambda body, ids_NS: (None, "not wanted")):
        return PromptCache(lm, prompts)


def generate(lm: LanguageModel) -> Result:
    """A whole run, as small as can be."""
    return gradmm.generate(lm, TASK, _rows(), GenerateConfig.model_validate(TINY))


@cache
def _rows() -> LabelledData:
    return load_data(ROWS)


def comes_back(lm: LanguageModel, folder: Path) -> bool:
    """Whether the model, saved and loaded, is the same by fingerprint and by logits."""
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    again = load_model(folder, device="cpu")
    ids = torch.arange(2, 14)[None]
    return again.fingerprint() == lm.fingerprint() and torch.equal(again.model(ids).logits, lm.model(ids).logits)
