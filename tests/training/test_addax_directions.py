"""`gradmm.training.addax`: random directions, and weights that come back from them to the bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from gradmm.training import addax
from gradmm.training.addax import Addax, _Correction
from optimizer_tools import DTYPES, HALVES, Batch, TinyLM, bits_of, each_dtype, rows, zeros

# ---- z


def directions(optimizer, parameters, steps=1):
    """The z of every step and parameter, as seen by the long rows."""
    found = []

    def long():
        found.append([parameter.detach().clone() for parameter in parameters])
        return torch.zeros(())

    eps = optimizer.param_groups[0]["perturbation"]
    for _ in range(steps):
        optimizer.step(long=long)
    return [
        [(a - b) / (2 * eps) for a, b in zip(plus, minus, strict=True)]
        for plus, minus in zip(found[::2], found[1::2], strict=True)
    ]


def test_z_is_normal_and_new_for_every_step_parameter_piece_and_seed(monkeypatch):
    monkeypatch.setitem(addax._PIECE, "cpu", 4000)
    parameters = zeros(8000, 8000)
    found = directions(Addax(parameters, seed=5), parameters, steps=2)
    other = directions(Addax(parameters, seed=6), parameters)
    apart = [part for step in (*found, *other) for z in step for part in z.split(4000)]
    values = torch.cat(apart)
    assert abs(float(values.mean())) < 0.03 and abs(float(values.std()) - 1) < 0.03
    assert float((values.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.01)
    correlations = torch.corrcoef(torch.stack(apart)) - torch.eye(len(apart))
    assert float(correlations.abs().max()) < 0.08


def test_z_of_a_parameter_does_not_depend_on_which_others_are_frozen_nor_on_precision():
    parameters = zeros(30, 40)
    (all_moved,) = directions(Addax(parameters, seed=5), parameters)
    again = zeros(30, 40)
    again[0].requires_grad_(False)
    (one_moved,) = directions(Addax(again, seed=5), again)
    assert torch.equal(one_moved[0], torch.zeros(30))
    assert torch.equal(one_moved[1], all_moved[1])
    for dtype in DTYPES:
        rounded = zeros(30, 40, dtype=dtype)
        (found,) = directions(Addax(rounded, seed=5), rounded)
        torch.testing.assert_close(found[1].double(), all_moved[1], rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision_is_rounded_once(dtype):
    """When weights are moved to and fro, and when they take their step: both are computed in float32."""
    start = (0.02 * torch.randn(3000, generator=torch.Generator().manual_seed(0))).to(dtype)
    weight, exact = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(3000))
    seen, sides = [], iter((0.25, -0.25, 0.0, 0.0))

    def long(own):
        seen.append(own.detach().clone())
        return torch.tensor(next(sides))

    eps, lr = 2**-10, 2**-3  # powers of 2, with which products are exact
    Addax([weight], lr=lr, perturbation=eps).step(long=lambda: long(weight))
    Addax([exact], lr=lr, perturbation=eps).step(long=lambda: long(exact))
    plus, minus, shift, _ = seen
    assert torch.equal(plus, (start.float() + shift).to(dtype))
    assert torch.equal(minus, (start.float() - shift).to(dtype))
    step = lr * 0.5 / (2 * eps) * (shift / eps)
    assert torch.equal(weight, (start.float() - step).to(dtype))


def test_dropout_is_the_same_on_both_sides_and_new_in_every_step():
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer, masks = Addax([weight], lr=1.0), []

    def long():
        masks.append(functional.dropout(torch.ones(64)))
        return masks[-1].sum()

    for _ in range(2):
        optimizer.step(long=long)
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
    assert torch.equal(weight, torch.zeros(3))


def test_autocast_around_a_step_sees_both_sides():
    """Autocast keeps copies of weights, which would be those of the other side."""
    x = rows(0, 6).double().float()
    layer, losses = torch.nn.Linear(6, 40), []

    def long():
        losses.append(layer(x).float().square().mean())
        return losses[-1]

    with torch.autocast("cpu", torch.bfloat16):
        Addax(layer.parameters(), perturbation=0.1).step(long=long)
    assert abs(float(losses[0] - losses[1])) > 1e-3 * float(losses[0])


# ---- weights come back


def contents(dtype):
    """Weights of every size that a number can have, and of models' usual one."""
    draw, info = torch.Generator().manual_seed(0), torch.finfo(dtype)
    special = [0.0, -0.0, info.max, -info.max, info.tiny, -info.tiny, info.tiny / 2, info.smallest_normal]
    special += [info.tiny * info.eps, math.inf, -math.inf, math.nan, 1.0, 1 + info.eps, 1 - info.eps / 2, -1e-8]
    patterns = torch.randint(-(2**15), 2**15, (4096,), generator=draw).to(torch.int16)
    every_size = patterns.view(dtype) if dtype in HALVES else patterns.int().mul(2**16 - 3).view(torch.float32)
    usual = [torch.randn(3000, generator=draw) * scale for scale in (1e-6, 5e-3, 0.02, 1.0)]
    return [torch.tensor(special, dtype=torch.float64).to(dtype), every_size, *(own.to(dtype) for own in usual)]


@each_dtype
@pytest.mark.parametrize("perturbation", [1e-3, 1.0, 1e-7])
@pytest.mark.parametrize("fails", [1, 2, None])
def test_weights_come_back_bit_for_bit(piece, dtype, perturbation, fails):
    few = slice(48 if addax._PIECE["cpu"] == 5 else None)  # a piece takes its time
    tensors = [*(own[few] for own in contents(dtype)), torch.empty(0, dtype=dtype)]
    parameters = [torch.nn.Parameter(own) for own in tensors]
    frozen = torch.nn.Parameter(tensors[1].clone(), requires_grad=False)
    before, calls = bits_of([*parameters, frozen]), []

    def long():
        calls.append(bits_of([*parameters, frozen]))
        if fails == len(calls):
            raise KeyboardInterrupt
        return torch.ones(())

    def short():
        calls.append(bits_of([*parameters, frozen]))
        raise KeyboardInterrupt

    optimizer = Addax([*parameters, frozen], lr=0.1, perturbation=perturbation)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(short, long)
    assert len(calls) == (fails or 3)
    for own, now in zip(before, bits_of([*parameters, frozen]), strict=True):
        assert torch.equal(own, now)
    assert torch.equal(calls[0][-1], before[-1])
    for seen in calls[:2]:
        assert not torch.equal(seen[1], before[1])


def test_weights_come_back_where_memory_runs_out_while_they_are_moved(monkeypatch):
    monkeypatch.setitem(addax._PIECE, "cpu", 16)
    model, made, between = TinyLM(dtype=torch.float32), [], _Correction.between

    def failing(old, new):
        made.append(between(old, new))
        if len(made) == 5:
            raise MemoryError
        return made[-1]

    monkeypatch.setattr(_Correction, "between", staticmethod(failing))
    before, batch = bits_of(model.parameters()), Batch(model)
    with pytest.raises(MemoryError):
        Addax(model.parameters()).step(long=batch.long)
    assert batch.seen == []
    assert all(torch.equal(own, now) for own, now in zip(before, bits_of(model.parameters()), strict=True))


@given(st.data(), st.sampled_from([torch.int16, torch.int32, torch.int64]), st.booleans())
@settings(max_examples=60)
def test_a_correction_leads_from_any_bits_to_any_others(data, bits, are_near):
    floats = {torch.int16: torch.float16, torch.int32: torch.float32, torch.int64: torch.float64}[bits]
    ends = torch.iinfo(bits)
    pattern, step = st.integers(ends.min, ends.max), st.integers(-130, 130)
    old = data.draw(st.lists(pattern, max_size=20))
    size = len(old)
    if are_near:
        new = [min(max(value + data.draw(step), ends.min), ends.max) for value in old]
    else:
        new = data.draw(st.lists(pattern, min_size=size, max_size=size))
    old_N, new_N = (torch.tensor(values, dtype=bits) for values in (old, new))
    correction = _Correction.between(old_N.view(floats), new_N.view(floats))
    assert torch.equal(correction.apply(old_N.view(floats)).view(bits), new_N)
    assert len(correction.small_M) == sum(a != b for a, b in zip(old, new, strict=True))


@each_dtype
@pytest.mark.parametrize("scale", [5e-3, 0.02, 0.2])
def test_corrections_take_a_third_of_a_byte_a_weight_at_most(dtype, scale):
    draw = torch.Generator().manual_seed(0)
    weight_N = (torch.randn(2**16, generator=draw) * scale).to(dtype)
    shift_N = 1e-3 * torch.randn(2**16, generator=draw)
    moved_N = (weight_N + shift_N).to(dtype)
    kept = _Correction.between((moved_N - shift_N).to(dtype), weight_N)
    size = sum(part.nbytes for part in (kept.changed_B, kept.small_M, kept.wide))
    assert 2**13 < size < 2**16 / 3
