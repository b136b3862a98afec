"""`gradmm.training.addax`: steps against float64 steps with everything stored, and against torch."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradmm.errors import ConfigError, NonFiniteError
from gradmm.training.addax import Addax, split_by_length
from optimizer_tools import HALVES, Batch, TinyLM, bits_of, stored_step, zeros

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


# ---- what torch expects


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
