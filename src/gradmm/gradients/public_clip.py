"""What public text says of a release before it is made: where to clip, and how much of the clip is left of a mean.

All of it is computed from texts that the LM wrote. No real row has a part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradmm.errors import ConfigError, NonFiniteError
from gradmm.gradients.factors import Factors, as_one_set, inner


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
