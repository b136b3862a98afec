"""What a model computes, in floating-point operations: a multiplication and an addition are two.

Counted are products of matrices, which are all that grows with a model's size; norms, activations and softmax are
not. Of a mixture of experts all experts count, so that what is said of it is too much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gradmm.models import LanguageModel


@dataclass(frozen=True)
class Arithmetic:
    """FLOP of a forward pass."""

    body: float
    """Of one token, without attention: twice the weights that are multiplied by."""
    pair: float
    """Of one token that attends to one token, in all layers: the score, and the sum of values."""
    head: float
    """Of the logits at one position."""

    def forward(self, texts: int, length: float, positions: float) -> float:
        """Texts of so many tokens through the body, of all of which so many positions go through the head."""
        pairs = length * (length + 1) / 2  # nothing looks ahead
        return texts * (length * self.body + pairs * self.pair) + positions * self.head

    def forward_backward(self, texts: int, length: float, positions: float) -> float:
        """The same, and back to the input embeddings: as much again, for attention twice as much.

        At the head, the distance takes part too: a product with the target's matrix, and two to go back.
        """
        pairs = length * (length + 1) / 2
        return texts * (2 * length * self.body + 3 * pairs * self.pair) + 5 * positions * self.head

    def decode(self, texts: int, start: int, steps: float) -> float:
        """Tokens one at a time behind a prompt of `start` tokens whose cache is there, with logits for each."""
        pairs = steps * start + steps * (steps + 1) / 2
        return texts * (steps * (self.body + self.head) + pairs * self.pair)


def arithmetic_of(lm: LanguageModel) -> Arithmetic:
    """What a model's passes cost.

    Args:
        lm: the model; embedding tables, which are looked up and not multiplied by, do not count.
    """
    tables = {id(m.weight) for m in lm.body.modules() if isinstance(m, torch.nn.Embedding)}
    weights = sum(p.numel() for p in lm.body.parameters() if p.dim() > 1 and id(p) not in tables)
    return Arithmetic(2.0 * weights, 4.0 * _attention_width(lm.model.config), 2.0 * lm.head.weight_VD.numel())


def _attention_width(config: Any) -> int:
    """Numbers in the queries of one token, in all layers; 0 without attention."""
    own = config.get_text_config()
    heads = getattr(own, "num_attention_heads", None) or 0
    each = getattr(own, "head_dim", None) or own.hidden_size // max(1, heads)
    return int(own.num_hidden_layers * heads * each)
