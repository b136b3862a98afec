"""The algorithm taken literally, as the official implementation runs it: the slow side of every comparison.

- the head's gradient is materialised (V x D) and differentiated through (`create_graph=True`);
- logits are computed at every position, though only the last one counts;
- a perplexity pass with coefficient 0 is part of every inner step;
- an outer iteration projects twice: for z, and again for the figures that it logs;
- every position of a projection is a `generate(max_new_tokens=1)` over prompt and tokens so far, without a
  cache, with full-vocabulary sorts.

It is a `Problem` as `GradientMatching` is, so that the same solver runs on both.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradmm.data.task import BoundTask
from gradmm.models import LanguageModel


class LiteralMatching:
    """Gradient matching by brute force; one text length for all, one label token.

    Args:
        lm: the language model.
        task: the rendering.
        targets: per class, the dense mean gradient (V, D) and that of the bias (V) or None.
        allowed_V: tokens that may be chosen.
        labels_K: class of each block.
        k: tokens on the projection's short list.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: BoundTask,
        targets: Sequence[tuple[Tensor, Tensor | None]],
        allowed_V: Tensor,
        labels_K: Sequence[int],
        k: int = 200,
    ) -> None:
        self.task, self.targets, self.allowed_V, self.labels_K, self.k = task, targets, allowed_V, labels_K, k
        self.model: Any = copy.deepcopy(lm.model)
        head = self.model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())  # unties it
        if head.bias is not None:
            head.bias = torch.nn.Parameter(head.bias.detach().clone())
        self.head = head
        self.embed = self.model.get_input_embeddings()
        self.device = lm.device
        self.suffix_SE = self.embed(torch.tensor(task.suffix_ids, device=self.device)).detach()
        self.prefix_SE = self.embed(torch.tensor(task.prefix_ids, dtype=torch.long, device=self.device)).detach()

    def objective(self, x: Tensor) -> Tensor:
        """Distance of every block (K,)."""
        return torch.stack([self._one(x[k], self.labels_K[k]) for k in range(len(x))])

    def _one(self, x_BTE: Tensor, label: int) -> Tensor:
        count = len(x_BTE)
        prefix, suffix = self.prefix_SE.expand(count, -1, -1), self.suffix_SE.expand(count, -1, -1)
        embeds = torch.cat([prefix, x_BTE.to(prefix.dtype), suffix], dim=1)
        logits_BV = self.model(inputs_embeds=embeds).logits[:, -1]
        labels_B = torch.full((count,), self.task.label_ids[label][0], device=self.device)
        loss = torch.nn.functional.cross_entropy(logits_BV, labels_B)
        wanted = [self.head.weight] + ([] if self.head.bias is None else [self.head.bias])
        grads = torch.autograd.grad(loss, wanted, create_graph=x_BTE.requires_grad)
        distances = [1 - _cosine(g, t) for g, t in zip(grads, self.targets[label], strict=False) if t is not None]
        mean = torch.stack(distances).mean()
        return mean + 0.0 * self._perplexity(embeds)

    def _perplexity(self, embeds: Tensor) -> Tensor:
        """Of the nearest tokens; part of every inner step, with coefficient 0."""
        with torch.no_grad():
            ids = (embeds @ self.embed.weight.T).argmax(-1)
        logits = self.model(inputs_embeds=embeds).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def project(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and tokens of the text nearest to v; nearest k, then most probable."""
        codes = torch.stack([self._project_one(v[k], self.labels_K[k]) for k in range(len(v))])
        return self.embed(codes).float(), codes

    def _project_one(self, v_BTE: Tensor, label: int) -> Tensor:
        table, v_BTE = self.embed.weight, v_BTE.to(self.embed.weight.dtype)
        near = torch.nn.functional.normalize(v_BTE, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
        near[:, :, ~self.allowed_V] = -torch.inf
        order = torch.argsort(near, dim=-1, descending=True)
        rows = [list(self.task.instruction_ids[label]) for _ in v_BTE]
        start = len(rows[0])
        for t in range(v_BTE.shape[1]):
            output = self.model.generate(
                input_ids=torch.tensor(rows, device=self.device),
                attention_mask=torch.ones(len(rows), start + t, dtype=torch.long, device=self.device),
                max_new_tokens=1,
                do_sample=False,
                use_cache=False,
                return_dict_in_generate=True,
                output_scores=True,
                pad_token_id=0,
            )
            ranking = torch.argsort(output.scores[0], dim=-1, descending=True)
            for b, row in enumerate(rows):
                short = order[b, t, : self.k]
                row.append(int(ranking[b][torch.isin(ranking[b], short)][0]))
        return torch.tensor([row[start:] for row in rows], device=self.device)

    @torch.no_grad()
    def score(self, codes: Tensor) -> Tensor:
        """Distance of the texts' gradient; projects again, as the figures of every iteration do."""
        _, codes = self.project(self.embed(codes))
        with torch.enable_grad():
            return self.objective(self.embed(codes).detach()).detach()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    similarity: Tensor = (a * b.to(a.dtype)).sum() / (a.norm() * b.to(a.dtype).norm())
    return similarity
