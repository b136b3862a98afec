"""DP-SGD (Abadi et al. 2016) on the real rows themselves: what private fine-tuning reaches without synthetic text.

Opacus clips every row's gradient and adds the noise; batches are drawn row by row (Poisson), and the noise
multiplier is the least whose composition stays within epsilon (PLD). The body is trained, with Adam; the embedding
is the head too and stays as it is, as Opacus knows no weight that is used twice.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from gradmm.comparison.material import Material
from gradmm.models import LanguageModel, hidden_states
from gradmm.privacy.accounting import Gaussian, calibrated
from gradmm.training.rows import TokenRows, tokenise

STEPS, BATCH, PHYSICAL = 20, 256, 32
RATE, CLIP = 1e-3, 1.0


class Classifier(nn.Module):
    """Logits of the classes' tokens, which are one each."""

    def __init__(self, lm: LanguageModel, tokens: list[int]) -> None:
        super().__init__()
        model: Any = copy.deepcopy(lm.model)
        self.body = model.base_model.requires_grad_(True).float()
        self.embedding = model.get_input_embeddings().requires_grad_(False)
        self.head_CD = lm.head.weight_VD[tokens].detach().clone().float()

    def forward(self, ids_NS: Tensor, index_NL: Tensor) -> Tensor:
        """(N, C)."""
        states_NLD = hidden_states(self.body, self.embedding(ids_NS), index_NL)
        return states_NLD[:, 0] @ self.head_CD.T


def private_accuracy(own: Material, test: TokenRows, epsilon: float, delta: float, seed: int) -> dict[str, Any]:
    """Accuracy of the model after DP-SGD, a row more or less being protected."""
    assert all(len(tokens) == 1 for tokens in own.task.label_ids), "for verbalisers of one token"
    rows = tokenise(own.task, [own.rows.texts_of(label) for label in range(own.rows.num_classes)])
    (event,) = calibrated([Gaussian(1.0, STEPS, BATCH / len(rows))], epsilon, delta, "add_or_remove_one")
    model = GradSampleModule(Classifier(own.lm, [tokens[0] for tokens in own.task.label_ids])).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = DPOptimizer(
        torch.optim.Adam(weights, lr=RATE),
        noise_multiplier=event.noise_multiplier,
        max_grad_norm=CLIP,
        expected_batch_size=BATCH,
        generator=torch.Generator().manual_seed(seed),
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        drawn = torch.rand(len(rows), generator=generator) < BATCH / len(rows)
        step(own, model, optimizer, rows, drawn.nonzero().flatten().tolist())
    return {"noise_multiplier": event.noise_multiplier, "accuracy": correct(own, model, test)}


def step(own: Material, model: nn.Module, optimizer: DPOptimizer, rows: TokenRows, drawn: list[int]) -> None:
    """One update, from as many passes as memory takes."""
    drawn.sort(key=lambda i: len(rows.ids[i]))
    parts = [drawn[at : at + PHYSICAL] for at in range(0, len(drawn), PHYSICAL)]
    for number, part in enumerate(parts):
        optimizer.signal_skip_step(do_skip=number < len(parts) - 1)
        logits_NC = read(own, model, rows, part)
        labels_N = torch.tensor([rows.labels[i] for i in part])
        loss: Any = nn.functional.cross_entropy(logits_NC, labels_N)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def read(own: Material, model: nn.Module, rows: TokenRows, part: list[int]) -> Tensor:
    """Logits (N, C) of some rows."""
    batch = own.task.collate([rows.ids[i] for i in part], [rows.labels[i] for i in part])
    logits_NC: Tensor = model(batch.ids_NS, batch.predict_at_NL)
    return logits_NC


@torch.no_grad()
def correct(own: Material, model: nn.Module, test: TokenRows) -> float:
    """Share of rows whose class is found."""
    model.eval()
    order = sorted(range(len(test)), key=lambda i: len(test.ids[i]))
    found = 0
    for at in range(0, len(order), 64):
        part = order[at : at + 64]
        labels_N = torch.tensor([test.labels[i] for i in part])
        found += int((read(own, model, test, part).argmax(1) == labels_N).sum())
    return found / len(test)
