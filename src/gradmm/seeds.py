"""Seeds for one purpose each: what is drawn for it depends on nothing that was drawn before."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *purpose: object) -> int:
    """A seed of 63 bits, another one for every purpose."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def make_generator(seed: int, *purpose: object) -> torch.Generator:
    """A random generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))
