"""How many texts every class gets: shares of a total, and lists that have to name every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradmm.errors import ConfigError, listed, nearest


def share_out(total: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Shares of a total in proportion to weights (largest remainders, earlier classes first), each at least 1."""
    shares, large = [1] * len(weights), list(range(len(weights)))
    exact: dict[int, float] = {}
    while len(exact) < len(large):  # what is left when small classes have got their one, until none is small
        rest, weight = total - len(weights) + len(large), sum(weights[c] for c in large)
        exact = {c: rest * weights[c] / weight for c in large if rest * weights[c] >= weight}
        if len(exact) < len(large):
            large, exact = list(exact), {}
    for c, share in exact.items():
        shares[c] = int(share)
    by_remainder = sorted(large, key=lambda c: shares[c] - exact[c])
    for c in by_remainder[: total - sum(shares)]:
        shares[c] += 1
    return tuple(shares)


def check_listed(listed_texts: Mapping[str, int], label_names: Sequence[str]) -> None:
    """Whether a list of texts per class has every class and no other.

    Raises:
        ConfigError: if it has not, naming which.
    """
    for name in listed_texts:
        if name not in label_names:
            raise ConfigError(f"texts_per_class lists {name!r}, which is no class{nearest(name, label_names)}")
    missing = [name for name in label_names if name not in listed_texts]
    if missing:
        raise ConfigError(f"texts_per_class lists no number for {listed(missing)}; give one for every class")
