"""How a model's body goes on with a sequence, token by token.

Every architecture remembers in its own way: keys and values of all tokens or of a window, convolution and
state-space states, several of these, or nothing. A body's cache is used where it gives what reading the whole
sequence again gives, which is tried on the sequences at hand; elsewhere the sequence is read again.

Shape suffixes: N sequences, S their length, D hidden size.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradmm.memory import is_out_of_memory

_ARGUMENTS = ("past_key_values", "cache_params")
STEPS = 3
"""Tokens that are read after the sequences to try a cache."""


@dataclass
class Continuation:
    """Sequences of equal length that a body has read, and what it needs to go on."""

    body: Any
    argument: str | None
    """The argument that takes the cache; None where the whole sequence is read again."""
    memory: Any
    """The cache, or the tokens so far (N, S)."""

    @classmethod
    def begin(cls, body: Any, ids_NS: Tensor, argument: str | None) -> tuple[Continuation, Tensor]:
        """Reads sequences; also returns the hidden state after each (N, D)."""
        output = body(input_ids=ids_NS, use_cache=argument is not None)
        memory = ids_NS if argument is None else output[argument]
        return cls(body, argument, memory), output.last_hidden_state[:, -1]

    def chosen(self, rows_N: Tensor) -> Continuation:
        """The same after some of the sequences, in any order and number; this one stays as it is."""
        if self.argument is None:
            return replace(self, memory=self.memory[rows_N])
        own = copy.deepcopy(self.memory)
        own.reorder_cache(rows_N)
        return replace(self, memory=own)

    def step(self, ids_N: Tensor) -> Tensor:
        """Reads one more token of each sequence and returns the hidden state after it (N, D)."""
        if self.argument is None:
            self.memory = torch.cat([self.memory, ids_N[:, None]], dim=1)
            output = self.body(input_ids=self.memory, use_cache=False)
        else:
            output = self.body(input_ids=ids_N[:, None], use_cache=True, **{self.argument: self.memory})
        hidden_ND: Tensor = output.last_hidden_state[:, -1]
        return hidden_ND


@torch.no_grad()
def find_cache(body: Any, ids_NS: Tensor) -> tuple[str | None, str]:
    """How a body takes its cache back, found out on some sequences.

    The cache after them is copied twice, each time for other rows, and a few more tokens are read; the hidden
    states have to be those of the whole sequences.

    Args:
        body: a transformers model without its head.
        ids_NS: sequences to try it on, with room for `STEPS` more tokens in the context.

    Returns:
        The argument's name and "", or None and why the cache is of no use.
    """
    output = body(input_ids=ids_NS, use_cache=True)
    argument = next((name for name in _ARGUMENTS if output.get(name) is not None), None)
    if argument is None:
        return None, "it returns none"
    more_NT = ids_NS[:, :1].flip(0) + torch.arange(STEPS, device=ids_NS.device)
    whole_NS = torch.cat([ids_NS, more_NT.clamp_max(int(ids_NS.max()))], dim=1)
    expected_NTD = body(input_ids=whole_NS, use_cache=False).last_hidden_state[:, -STEPS:].float()
    if not bool(expected_NTD.isfinite().all()):
        return argument, ""  # the caller sees to numbers that are not finite
    kept = Continuation(body, argument, output[argument])
    tolerance = 1e-3 if body.get_input_embeddings().weight.dtype == torch.float32 else 0.15
    try:
        for rows_N in (torch.arange(len(ids_NS)).repeat(2), torch.arange(len(ids_NS)).flip(0)):
            rows_N = rows_N.to(ids_NS.device)
            going = kept.chosen(rows_N)
            found_NTD = torch.stack([going.step(ids_N) for ids_N in whole_NS[rows_N, -STEPS:].T], dim=1).float()
            error = float((found_NTD - expected_NTD[rows_N]).norm() / expected_NTD[rows_N].norm())
            if not error < tolerance:
                return None, f"it gives hidden states that differ by {error:.0%} from those of the whole sequence"
    except Exception as err:  # the code of any architecture runs here
        if is_out_of_memory(err):
            raise
        return None, f"it cannot be continued from ({type(err).__name__}: {err})"
    return argument, ""
