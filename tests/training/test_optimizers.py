"""`gradmm.training.addax` and `optimizers`: against float64 steps with everything stored, and against torch."""

from __future__ import annotations

import copy
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from gradmm.errors import ConfigError, NonFiniteError
from gradmm.training import addax
from gradmm.training.addax import Addax, _Correction, split_by_length
from gradmm.training.optimizers import OptimizerConfig, make_optimizer, make_schedule

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALVES)
BITS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class TinyLM(torch.nn.Module):
    """Embeddings tied to the head, a layer, one weight that long rows alone use, and one that is frozen."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = torch.nn.Embedding(13, 6)
            self.norm = torch.nn.LayerNorm(6)
            self.layer = torch.nn.Linear(6, 6)
            self.far = torch.nn.Parameter(torch.randn(6) / 3)
            self.frozen = torch.nn.Parameter(torch.randn(6), requires_grad=False)
        self.to(dtype)

    def forward(self, ids_NS, is_long=False):
        states = self.embed(ids_NS) + self.frozen + (self.far if is_long else 0)
        states = states + torch.tanh(self.layer(self.norm(states)))
        logits = states @ self.embed.weight.T
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids_NS[:, 1:].flatten())

    def trained(self):
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}


def rows(seed, length):
    return torch.randint(13, (3, length), generator=torch.Generator().manual_seed(seed))


class Batch:
    """Closures over a model, and what the weights were when they were called."""

    def __init__(self, model, seed=0, fails=None, value=None):
        self.model, self.fails, self.value = model, fails, value
        self.short_ids, self.long_ids = rows(seed, 5), rows(seed + 1000, 11)
        self.seen = []

    def look(self):
        self.seen.append({name: weight.detach().clone() for name, weight in self.model.named_parameters()})
        if self.fails == len(self.seen):
            if self.value is not None:
                return self.value
            raise RuntimeError("no")
        return 0.0

    def short(self):
        return self.model(self.short_ids) + self.look()

    def long(self):
        return self.model(self.long_ids, is_long=True) + self.look()


def stored_step(model, batch, kinds, groups, eps):
    """One step with everything stored, along the z that was seen: new weights by name, and the mean loss."""
    start, loss, new = {name: w.detach().clone() for name, w in model.named_parameters()}, {}, {}
    gradients = dict.fromkeys(start)
    if "short" in kinds:
        short = model(batch.short_ids)
        found = torch.autograd.grad(short, list(model.trained().values()), allow_unused=True)
        gradients |= dict(zip(model.trained(), found, strict=True))
        loss["short"] = short.item()
    if "long" in kinds:
        plus, minus = batch.seen[:2]
        sides = []
        for weights in (plus, minus):
            model.load_state_dict(weights)
            sides.append(model(batch.long_ids, is_long=True).item())
        model.load_state_dict(start)
        loss["long"] = sum(sides) / 2
        difference = sides[0] - sides[1]
    for name, group in groups.items():
        share = {("short",): 0.0, ("long",): 1.0}.get(kinds, group["alpha"])
        step = torch.zeros_like(start[name])
        if gradients[name] is not None:
            step += (1 - share) * gradients[name]
        if "long" in kinds:
            z = (plus[name] - minus[name]) / (2 * eps[name])
            step += share * difference / (2 * eps[name]) * z
        untouched = gradients[name] is None and "long" not in kinds
        decay = 1.0 if untouched else 1 - group["lr"] * group["weight_decay"]
        new[name] = decay * start[name] - group["lr"] * step
    return new, sum(float(own) for own in loss.values()) / len(loss)


def bits_of(tensors):
    return [tensor.detach().clone().view(BITS[tensor.dtype]) for tensor in tensors]


@pytest.fixture(params=[5, 2**18])
def piece(request, monkeypatch):
    """Parameters in many pieces, and each in one."""
    monkeypatch.setitem(addax._PIECE, "cpu", request.param)


# ---- steps


@pytest.mark.parametrize("kinds", [("short", "long"), ("short",), ("long",)], ids="-".join)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_steps_are_those_with_everything_stored(piece, kinds, alpha):
    """With a group of its own for the layer, whose settings all differ."""
    model = TinyLM()
    other = {"lr": 0.05, "alpha": alpha / 2, "perturbation": 3e-3, "weight_decay": 0.0}
    own = {"lr": 0.2, "alpha": alpha, "perturbation": 1e-2, "weight_decay": 0.1}
    layer = [name for name in model.trained() if name.startswith("layer")]
    groups = {name: other if name in layer else own for name in model.trained()}
    params = [
        {"params": [model.get_parameter(name) for name in groups if groups[name] is own]},
        {"params": [model.get_parameter(name) for name in layer], **other},
    ]
    optimizer = Addax(params, **own, seed=3)
    for step in range(3):
        batch, twin = Batch(model, step), copy.deepcopy(model)
        found = optimizer.step(*(getattr(batch, kind) if kind in kinds else None for kind in ("short", "long")))
        eps = {name: group["perturbation"] for name, group in groups.items()}
        expected, loss = stored_step(twin, batch, kinds, groups, eps)
        assert found == pytest.approx(loss, rel=1e-6)
        moved = 0.0
        for name, weight in model.trained().items():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-9, atol=1e-9)
            moved += float((weight - twin.get_parameter(name)).detach().norm())
        assert moved > 1e-3
        assert torch.equal(model.frozen, twin.frozen)


def test_both_estimates_are_taken_at_the_same_weights():
    """The closures see theta + eps z, theta - eps z and theta, these bit for bit."""
    model = TinyLM(dtype=torch.float32)
    start, batch = copy.deepcopy(model), Batch(model)
    Addax(model.parameters(), lr=0.1, alpha=0.5).step(batch.short, batch.long)
    plus, minus, there = batch.seen
    for name, weight in start.named_parameters():
        assert torch.equal(there[name].view(torch.int32), weight.detach().view(torch.int32))
        torch.testing.assert_close((plus[name] + minus[name]) / 2, weight.detach(), rtol=1e-6, atol=1e-7)
        assert torch.equal(plus[name], minus[name]) != weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("alpha", "with_long"), [(0.0, True), (0.7, False)])
def test_without_zeroth_order_steps_are_sgd_to_the_last_bit(dtype, alpha, with_long):
    model, twin = TinyLM(dtype=dtype), TinyLM(dtype=dtype)
    addax, sgd = Addax(model.parameters(), lr=0.1, alpha=alpha), torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(4):
        batch = Batch(model, step)
        addax.step(batch.short, batch.long if with_long else None)
        sgd.zero_grad()
        twin(batch.short_ids).backward()
        sgd.step()
        for one, other in zip(bits_of(model.parameters()), bits_of(twin.parameters()), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(model.layer.weight, TinyLM(dtype=dtype).layer.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_long_rows_alone_make_mezo_whatever_alpha(dtype):
    """Textbook MeZO: theta - lr (L+ - L-) / (2 eps) z."""
    ends = []
    for alpha in (0.0, 0.01, 1.0):
        model, eps, lr = TinyLM(dtype=dtype), 1e-2, 0.02
        optimizer = Addax(model.parameters(), lr=lr, alpha=alpha, perturbation=eps, seed=1)
        for step in range(3):
            batch, start = Batch(model, step), copy.deepcopy(model)
            optimizer.step(long=batch.long)
            sides = []
            for weights in batch.seen:
                twin = TinyLM(dtype=dtype)
                twin.load_state_dict(weights)
                sides.append(twin(batch.long_ids, is_long=True).item())
            for name, weight in start.trained().items():
                z = (batch.seen[0][name] - batch.seen[1][name]) / (2 * eps)
                expected = weight.detach() - lr * (sides[0] - sides[1]) / (2 * eps) * z
                torch.testing.assert_close(model.get_parameter(name).detach(), expected, rtol=1e-5, atol=1e-5)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], end[name]) for end in ends[1:] for name in ends[0])


def test_weight_decay_is_decoupled():
    """Where the loss is flat there is nothing but decay, by lr * weight_decay."""
    weight = torch.nn.Parameter(torch.tensor([4.0, -2.0]))
    optimizer = Addax([weight], lr=0.1, weight_decay=0.5)
    for closures in ({"short": lambda: 0 * weight.sum()}, {"long": lambda: torch.zeros(())}):
        before = weight.detach().clone()
        optimizer.step(**closures)
        torch.testing.assert_close(weight.detach(), 0.95 * before)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_two_steps_that_half_precision_rounds_away_are_made_together(dtype):
    """Near 1 a number of 8 (11) bits moves by 1/256 (1/2048) at least; either estimate alone moves it by less
    than half of that."""
    ulp = torch.finfo(dtype).eps / 2  # below 1
    weight = torch.nn.Parameter(torch.ones(400, dtype=dtype))
    optimizer, sides = Addax([weight], lr=1.0, alpha=0.5, perturbation=1.0), iter((0.4 * ulp, -0.4 * ulp))
    optimizer.step(
        lambda: 0.8 * ulp * weight.float().sum(), lambda: torch.tensor(next(sides), dtype=torch.float64)
    )
    # the gradient's part is 0.4 ulp for every weight, z's 0.2 ulp times z
    shares = [float((weight.detach() == value).float().mean()) for value in (1.0, 1 - ulp)]
    assert shares[1] > 0.2 and shares[0] > 0.2 and sum(shares) > 0.9


def test_the_mean_loss_counts_rows():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = Addax([weight])
    short, long = (lambda value=value: weight.sum() * 0 + value for value in (2.0, 5.0))
    assert optimizer.step(short, long) == pytest.approx(3.5)
    assert optimizer.step(short, long, (3, 1)) == pytest.approx(2.75)
    assert optimizer.step(short) == pytest.approx(2.0)
    assert optimizer.step(None, long, (0, 4)) == pytest.approx(5.0)


@pytest.mark.parametrize("alpha", [1e-3, 1e-2])
@pytest.mark.parametrize("kinds", [("short", "long"), ("short",), ("long",)], ids="-".join)
def test_the_loss_falls(kinds, alpha):
    """Of both kinds of rows, as both have the same weights to learn from."""
    draw = torch.Generator().manual_seed(0)
    x_NF, true_F = torch.randn(64, 10, generator=draw), torch.randn(10, generator=draw)
    weight_F = torch.nn.Parameter(torch.zeros(10))

    def loss(half):
        return ((x_NF[half] @ (weight_F - true_F)) ** 2).mean()

    closures = {"short": lambda: loss(slice(0, 32)), "long": lambda: loss(slice(32, 64))}
    optimizer, start = Addax([weight_F], lr=0.02, alpha=alpha), loss(slice(0, 64)).item()
    for _ in range(120):
        optimizer.step(**{kind: closures[kind] for kind in kinds})
    assert loss(slice(0, 64)).item() < 0.1 * start


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


def zeros(*sizes, dtype=torch.float64):
    return [torch.nn.Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


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


# ---- gradients


@pytest.mark.parametrize("with_long", [True, False])
def test_one_gradient_at_a_time_and_none_is_left(with_long):
    model = TinyLM()
    alive, optimizer, batch = [], Addax(model.parameters()), Batch(model)
    model.layer.weight.grad = torch.ones_like(model.layer.weight)  # of somebody else's backward pass
    for weight in model.trained().values():
        weight.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(own.grad is not None for own in model.parameters()))
        )
    optimizer.step(batch.short, batch.long if with_long else None)
    assert alive == [1] * 5  # of all that are trained but `far`
    assert all(weight.grad is None for weight in model.parameters())


def test_after_a_step_backpropagation_is_as_ever():
    model = TinyLM()
    batch, optimizer = Batch(model), Addax(model.parameters())
    optimizer.step(batch.short)
    before = copy.deepcopy(model)
    model(batch.short_ids).backward()
    for name, weight in before.named_parameters():
        assert torch.equal(model.get_parameter(name), weight)
    assert model.layer.weight.grad is not None
    expected = copy.deepcopy(before)
    Addax(expected.parameters()).step(Batch(expected).short)
    optimizer.step(batch.short)  # which does not count that gradient again
    assert torch.equal(model.layer.weight, expected.layer.weight)


def test_weights_of_nobody_gather_no_gradients():
    model = TinyLM()
    batch, start = Batch(model), copy.deepcopy(model)
    Addax(model.layer.parameters(), lr=0.1, alpha=0.5).step(batch.short, batch.long)
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, start.get_parameter(name)) != name.startswith("layer")


@pytest.mark.parametrize("has_gradient", [True, False])
def test_a_failing_backward_pass_leaves_neither_gradients_nor_hooks(has_gradient):
    """Whether it fails on the way to a weight, or when a weight has its gradient already."""
    model, handles = TinyLM(), []
    batch, optimizer = Batch(model), Addax(model.parameters(), lr=0.1)

    def fail(tensor):
        raise RuntimeError("broken off")

    def failing():
        on_the_way = model.layer.weight * 1
        hook = model.layer.weight.register_post_accumulate_grad_hook if has_gradient else on_the_way.register_hook
        handles.append(hook(fail))
        return model(batch.short_ids) + on_the_way.sum()

    with pytest.raises(RuntimeError, match="broken off"):
        optimizer.step(failing)
    assert all(weight.grad is None for weight in model.parameters())
    assert optimizer.param_groups[0]["steps"] == 0
    handles[0].remove()
    before = copy.deepcopy(model.state_dict())
    model(batch.short_ids).backward()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_weight_that_is_used_at_every_depth_is_moved_when_all_is_summed():
    """Were it moved after its first use, the uses before it would be differentiated at other weights."""
    draw = torch.Generator().manual_seed(0)
    x, start = torch.randn(4, 5, generator=draw), torch.randn(5, 5, generator=draw)
    weight, twin = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())

    def loss(own):
        return torch.tanh(torch.tanh(x @ own) @ own.T).matmul(own).square().sum()

    Addax([weight], lr=0.1).step(lambda: loss(weight))
    loss(twin).backward()
    torch.optim.SGD([twin], lr=0.1).step()
    assert torch.equal(weight, twin)


# ---- optimisers as torch knows them


def test_a_resumed_training_is_the_uninterrupted_one():
    """Through JSON, and into an optimiser that was made with other settings."""

    def train(model, optimizer, steps):
        for step in steps:
            batch = Batch(model, step)
            optimizer.step(batch.short if step % 3 else None, batch.long if step % 3 != 1 else None)

    whole, parts = TinyLM(dtype=torch.float32), TinyLM(dtype=torch.float32)
    make = {"lr": 0.1, "alpha": 0.2, "weight_decay": 0.1, "seed": 4}
    train(whole, Addax(whole.parameters(), **make), range(6))
    first = Addax(parts.parameters(), **make)
    train(parts, first, range(3))
    state, second = json.loads(json.dumps(first.state_dict())), Addax(parts.parameters(), lr=1.0)
    second.load_state_dict(state)
    train(parts, second, range(3, 6))
    assert second.param_groups[0]["steps"] == 6
    assert all(torch.equal(whole.state_dict()[name], own) for name, own in parts.state_dict().items())


def test_a_schedule_sets_the_size_of_steps():
    weight = torch.nn.Parameter(torch.zeros(1))
    config = OptimizerConfig(optim="addax", learning_rate=1.0, warmup_steps=2)
    optimizer = make_optimizer([weight], config)
    schedule, moved = make_schedule(optimizer, config, 6), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of a schedule that thinks there was no step
        for _ in range(6):
            before = float(weight.detach())
            optimizer.step(weight.sum)
            schedule.step()
            moved.append(before - float(weight.detach()))
    assert moved == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["linear", "constant"])
@pytest.mark.parametrize(("warmup", "max_steps"), [(0, 7), (3, 7), (7, 7), (0, 1)])
def test_schedules_are_those_of_transformers(kind, warmup, max_steps):
    from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

    config = OptimizerConfig(lr_scheduler_type=kind, warmup_steps=warmup, learning_rate=0.3)
    ours, theirs = (make_optimizer(zeros(1), config) for _ in range(2))
    own = make_schedule(ours, config, max_steps)
    if kind == "linear":
        reference = get_linear_schedule_with_warmup(theirs, warmup, max_steps)
    else:
        reference = get_constant_schedule_with_warmup(theirs, warmup)
    for _ in range(max_steps + 1):
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        for optimizer, schedule in ((ours, own), (theirs, reference)):
            optimizer.step(lambda: torch.zeros(()))
            schedule.step()


def test_settings_reach_the_optimiser_that_they_name():
    shared = {"learning_rate": 0.3, "weight_decay": 0.2}
    adamw = make_optimizer(zeros(2), OptimizerConfig(adam_beta1=0.5, adam_beta2=0.6, adam_epsilon=0.1, **shared))
    sgd = make_optimizer(zeros(2), OptimizerConfig(optim="sgd", momentum=0.7, **shared))
    settings_of = {"addax_alpha": 0.4, "addax_perturbation": 0.01}
    addax = make_optimizer(iter(zeros(2)), OptimizerConfig(optim="addax", **settings_of, **shared), 9)
    for optimizer, kind, expected in (
        (adamw, torch.optim.AdamW, {"betas": (0.5, 0.6), "eps": 0.1}),
        (sgd, torch.optim.SGD, {"momentum": 0.7, "nesterov": False}),
        (addax, Addax, {"alpha": 0.4, "perturbation": 0.01, "seed": 9}),
    ):
        assert type(optimizer) is kind
        assert optimizer.param_groups[0].items() >= ({"lr": 0.3, "weight_decay": 0.2} | expected).items()


def test_defaults_are_those_of_transformers():
    from dataclasses import fields

    from transformers import TrainingArguments

    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    names = ("learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "warmup_steps")
    for name in (*names, "lr_scheduler_type"):
        assert getattr(OptimizerConfig(), name) == theirs[name], name


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 9))
def test_every_row_is_short_or_long(lengths, longest):
    short, long = split_by_length(lengths, longest)
    assert sorted([*short, *long]) == list(range(len(lengths)))
    assert short == sorted(short) and long == sorted(long)
    assert all(lengths[i] <= longest for i in short) and all(lengths[i] > longest for i in long)


# ---- mistakes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("fails", "what"),
    [
        (1, "long rows' loss at theta + eps z"),
        (2, "long rows' loss at theta - eps z"),
        (3, "short rows' loss"),
    ],
)
def test_a_loss_that_is_no_number_stops_the_step_before_it_moves_anything(fails, what, value):
    model = TinyLM(dtype=torch.float32)
    optimizer = Addax(model.parameters(), lr=0.1)
    good = Batch(model)
    optimizer.step(good.short, good.long)
    before, bad = bits_of(model.parameters()), Batch(model, fails=fails, value=value)
    with pytest.raises(NonFiniteError) as caught:
        optimizer.step(bad.short, bad.long)
    assert str(caught.value) == (
        f"the {what} is {value} in step 2; the weights are as they were before it; lower lr (it is 0.1) or "
        "perturbation (it is 0.001), or compute in float32"
    )
    assert all(torch.equal(own, now) for own, now in zip(before, bits_of(model.parameters()), strict=True))
    assert optimizer.param_groups[0]["steps"] == 1
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1.0}, "lr of Addax is -1.0; give a number of at least 0"),
        ({"lr": math.inf}, "lr of Addax is inf; give a number of at least 0"),
        ({"alpha": 1.5}, "alpha of Addax is 1.5; give a number from 0 to 1"),
        ({"alpha": math.nan}, "alpha of Addax is nan; give a number from 0 to 1"),
        ({"perturbation": 0.0}, "perturbation of Addax is 0.0; give a number above 0, such as 1e-3"),
        ({"weight_decay": -0.1}, "weight_decay of Addax is -0.1; give a number of at least 0"),
    ],
)
def test_settings_of_addax_that_cannot_be_meant(wrong, message):
    with pytest.raises(ConfigError) as caught:
        Addax(zeros(2), **wrong)
    assert str(caught.value) == message
    optimizer = Addax(zeros(2))
    with pytest.raises(ConfigError) as caught:
        optimizer.add_param_group({"params": zeros(3), **wrong})
    assert str(caught.value) == message
    assert len(optimizer.param_groups) == 1


def test_parameters_that_addax_cannot_move():
    for parameter, message in (
        (
            torch.zeros(2, 3, dtype=torch.complex64),
            "of shape (2, 3) in complex64; convert it to float32, bfloat16 or ",
        ),
        (
            torch.zeros(3, 2).T,
            "of shape (2, 3) whose numbers are not contiguous in memory; give it its .contiguous()",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            Addax([torch.nn.Parameter(parameter)])
        assert str(caught.value).startswith(f"Addax cannot move a parameter {message}")


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_given_twice_would_be_moved_twice():
    with pytest.raises(ConfigError) as caught:
        Addax(zeros(2) * 2)
    assert str(caught.value) == (
        "Addax is given the same parameter twice; give every one once, as model.parameters() does"
    )


def test_a_step_of_nothing_is_refused():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer, other = Addax([weight]), torch.zeros(2, requires_grad=True)
    with pytest.raises(ConfigError) as caught:
        optimizer.step()
    assert str(caught.value) == ("a step of Addax has neither short rows nor long ones; give at least one closure")
    message = (
        "the short rows' loss depends on no weight that can be moved; let some of Addax's parameters require "
        "gradients, and compute the loss without torch.no_grad"
    )
    with pytest.raises(ConfigError) as caught:
        optimizer.step(lambda: weight.detach().sum())
    assert str(caught.value) == message
    weight.requires_grad_(False)
    with pytest.raises(ConfigError) as caught:
        optimizer.step(other.sum)
    assert str(caught.value) == message
    assert optimizer.param_groups[0]["steps"] == 0


def test_a_warm_up_that_never_ends_is_refused():
    config = OptimizerConfig(warmup_steps=30)
    with pytest.raises(ConfigError) as caught:
        make_schedule(make_optimizer(zeros(1), config), config, 20)
    assert str(caught.value) == (
        "warmup_steps is 30 but training ends after 20 steps; lower warmup_steps, or train longer"
    )
    make_schedule(make_optimizer(zeros(1), config), config, 0)  # a training of no steps has no warm-up to fit in


@pytest.mark.parametrize(
    "wrong",
    [
        {"optim": "adam"},
        {"learning_rate": 0},
        {"learning_rate": float("inf")},
        {"weight_decay": -1},
        {"adam_beta2": 1.0},
        {"addax_alpha": 1.1},
        {"addax_perturbation": 0},
        {"addax_long_tokens": -1},
        {"lr_scheduler_type": "cosine"},
        {"warmup_steps": -1},
        {"lr": 1e-3},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        OptimizerConfig(**wrong)
