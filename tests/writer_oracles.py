"""The writer's loss, slow and obvious."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gradmm.training.writer import Example


def literal_loss(model: Any, examples: Sequence[Example]) -> torch.Tensor:
    """One text at a time, by the model's own logits, one token after the other."""
    total = torch.zeros(())
    for prompt, text in examples:
        logits_SV = model(input_ids=torch.tensor([[*prompt, *text]])).logits[0].log_softmax(-1)
        for place, token in enumerate(text, start=len(prompt)):
            total = total - logits_SV[place - 1, token]
    return total
