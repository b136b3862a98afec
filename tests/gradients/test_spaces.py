"""`gradmm.gradients.spaces`: a space maps factors, and so the gradients that they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from gradmm.gradients.distances import DistanceConfig, distance
from gradmm.gradients.factors import Factors, inner
from gradmm.gradients.spaces import IDENTITY, LinearMap, Space, SpaceConfig, fit_space
from gradmm.gradients.target import ClassTarget, ReleasedTarget

V, D = 12, 7
LABELS = (5, 2, 9, 2)  # tokens of verbalisers, one of them in two
EVERY = [
    (),
    ("verbaliser",),
    ("centred",),
    ("whitened",),
    ("subspace",),
    ("sketch",),
    ("verbaliser", "whitened"),
    ("verbaliser", "contrasts", "whitened"),
    ("whitened", "verbaliser", "centred"),
    ("verbaliser", "whitened", "subspace", "centred"),
    ("subspace", "sketch", "centred"),
]
"""Maps; `centred`, which is last, is no map that is fitted but what a target's own means give."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def factors(seed: int, sets: int = 2, pairs: int = 3, common: float = 0.0) -> Factors:
    """With directions of unlike size, and one that all hidden states have in common."""
    draw = generator(seed)
    r_KJV = torch.randn(sets, pairs, V, generator=draw) * torch.linspace(0.3, 2, V)
    h_KJD = torch.randn(sets, pairs, D, generator=draw) * torch.linspace(3, 0.3, D) + common
    return Factors(r_KJV, h_KJD, 0.2 + torch.rand(sets, pairs, generator=draw))


PUBLIC = factors(100, 1, 40, common=2.0)


RELEASED = [factors(seed, 1, 30, common=2.0) for seed in (101, 102, 103)]
"""What the means of three classes are computed from."""


def released_in(space: Space) -> ReleasedTarget:
    return ReleasedTarget(tuple(ClassTarget(space(own), None) for own in RELEASED), space)


def fitted(*maps: str, public: Factors = PUBLIC, seed: int = 0, **settings) -> Space:
    of_public = tuple(name for name in maps if name != "centred")
    config = SpaceConfig(**{"maps": of_public, "rank": 3, **settings})
    space = fit_space(config, public, LABELS, generator(seed))
    return released_in(space).centred().space if "centred" in maps else space


def matrices(space: Space) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A (M, V), B (P, D) and B m (P): what the space does to unit vectors and to 0."""

    def through(r_JV, h_JD):
        out = space(Factors(r_JV[None], h_JD[None], torch.ones(1, len(r_JV))))
        return out.r_KJV[0], out.h_KJD[0]

    bm_P = -through(torch.zeros(1, V), torch.zeros(1, D))[1][0]
    a_VM, b_DP = through(torch.eye(V), torch.zeros(V, D))[0], through(torch.zeros(D, V), torch.eye(D))[1]
    return a_VM.T, (b_DP + bm_P).T, bm_P


def mapped(own: Factors, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
    """A (G - grad_b m^T) B^T and A grad_b, with matrices."""
    a_MV, b_PD, bm_P = matrices(space)
    weight_KVD, bias_KV = own.dense()
    bias_KM = bias_KV @ a_MV.T
    return a_MV @ weight_KVD @ b_PD.T - bias_KM.unsqueeze(-1) * bm_P, bias_KM


# ---- what a space does to gradients


@pytest.mark.parametrize("maps", EVERY, ids="-".join)
def test_mapped_factors_stand_for_the_mapped_gradients(maps):
    space, a, b = fitted(*maps), factors(1), factors(2, pairs=4)
    found = inner(space(a), space(b))
    (a_KMP, a_KM), (b_KMP, b_KM) = mapped(a, space), mapped(b, space)
    torch.testing.assert_close(found.weight_K, (a_KMP * b_KMP).sum((1, 2)), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.bias_K, (a_KM * b_KM).sum(1), rtol=1e-4, atol=1e-3)
    assert torch.equal(space(a).weight_KJ, a.weight_KJ)


@pytest.mark.parametrize("maps", EVERY[1:], ids="-".join)
def test_every_space_changes_the_distance_and_so_is_seen_by_these_tests(maps):
    space, a, b = fitted(*maps), factors(1, sets=1, common=1.0), factors(2, sets=1, common=1.0)
    values = [distance(DistanceConfig(), s(a), ClassTarget(s(b), None), True) for s in (space, IDENTITY)]
    assert abs(float(values[0] - values[1])) > 1e-3


def test_no_map_is_the_identity():
    own = factors(1)
    for space in (IDENTITY, fitted(), Space([LinearMap()])):
        assert all(torch.equal(a, b) for a, b in zip(space(own).tensors(), own.tensors(), strict=True))


@pytest.mark.parametrize("maps", EVERY, ids="-".join)
def test_gradients_flow_through(maps):
    """Against central differences, in float64."""
    found, own, target = fitted(*maps), factors(3, sets=1), factors(4, sets=1)
    space = Space([LinearMap(**{key: to_double(value) for key, value in vars(one).items()}) for one in found.maps])
    fixed = space(Factors(*map(to_double, target.tensors())))
    weight_KJ = own.weight_KJ.double()

    def value(r_KJV, h_KJD):
        return inner(space(Factors(r_KJV, h_KJD, weight_KJ)), fixed).weight_K.sum()

    leaves = tuple(leaf.double().requires_grad_() for leaf in (own.r_KJV, own.h_KJD))
    assert torch.autograd.gradcheck(value, leaves)


def to_double(value):
    return value.double() if value is not None and value.is_floating_point() else value


# ---- each map, by its definition


def test_verbaliser_keeps_the_rows_of_label_tokens():
    a_MV, b_PD, bm_P = matrices(fitted("verbaliser"))
    assert torch.equal(a_MV, torch.eye(V)[[2, 5, 9]])
    assert torch.equal(b_PD, torch.eye(D)) and not bm_P.any()


@pytest.mark.parametrize("count", [1, 2, 3, 12])
def test_contrasts_keep_all_inner_products_of_entries_that_sum_to_0(count):
    """With one number fewer; a single entry, which is 0 then, stays."""
    own = factors(1)
    r_KJV = own.r_KJV[..., :count] - own.r_KJV[..., :count].mean(-1, keepdim=True)
    own, other = replace(own, r_KJV=r_KJV), replace(own, r_KJV=r_KJV.flip(0).contiguous())
    space = fitted("contrasts", public=replace(PUBLIC, r_KJV=PUBLIC.r_KJV[..., :count]))
    assert space(own).r_KJV.shape[-1] == max(1, count - 1)
    for found, expected in zip(
        vars(inner(space(own), space(other))).values(), vars(inner(own, other)).values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert count == 1 or float(space.maps[0].r_MV.sum(1).abs().max()) < 1e-6


@pytest.mark.parametrize("maps", [(), ("whitened",), ("verbaliser", "whitened", "subspace")], ids="-".join)
def test_centred_takes_off_what_leaves_least_of_the_released_means(maps):
    """Least squares: of all classes' G = g m^T, entry by entry, after the maps that come before."""
    plain, centred = fitted(*maps), fitted(*maps, "centred")
    dense = [own.materialised() for own in released_in(plain).classes]
    gradients_RP, biases_R1 = torch.cat([g for g, _ in dense]), torch.cat([b for _, b in dense]).unsqueeze(1)
    m_P = torch.linalg.lstsq(biases_R1.double(), gradients_RP.double()).solution[0]
    (r_map, h_map, _), (r_same, h_same, taken_P) = matrices(plain), matrices(centred)
    torch.testing.assert_close(taken_P.double(), m_P, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(r_same, r_map)
    torch.testing.assert_close(h_same, h_map, rtol=1e-4, atol=1e-5)
    assert float(m_P.norm()) > 0.5, "there is something to take off"


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 10.0])
def test_whitened_evens_out_the_second_moment_up_to_the_ridge(ridge):
    h_JD = PUBLIC.h_KJD[0].double()
    moment_DD = h_JD.T @ h_JD / len(h_JD)
    lift = ridge * moment_DD.diagonal().mean()  # the mean eigenvalue
    seen = fitted("whitened", ridge=ridge)(PUBLIC).h_KJD[0].double()
    found_DD = seen.T @ seen / len(seen)
    expected_DD = torch.linalg.solve(moment_DD + lift * torch.eye(D), moment_DD)  # M (M + lift)^-1
    torch.testing.assert_close(found_DD, expected_DD, rtol=1e-4, atol=1e-4)
    if ridge < 1e-3:
        torch.testing.assert_close(found_DD, torch.eye(D).double(), rtol=1e-3, atol=1e-3)
    b_PD = matrices(fitted("whitened", ridge=ridge))[1]
    assert torch.equal(b_PD, b_PD.T) or (b_PD - b_PD.T).abs().max() < 1e-5 * b_PD.abs().max()


@pytest.mark.parametrize("rank", [1, 3, 6, 50])
@pytest.mark.parametrize("pairs", [2, 5, 9, 40])  # fewer than D, between D and V, more than V
def test_subspace_is_the_best_of_its_rank(pairs, rank):
    """Eckart and Young: what is left has the norm of the other singular values; no subspace leaves less."""
    public = factors(7, 1, pairs, common=1.0)
    for found, x in zip(
        matrices(fitted("subspace", public=public, rank=rank))[:2], public.tensors(), strict=False
    ):
        x_JV, rows_MV = x[0].double(), found.double()
        kept = min(rank, *x_JV.shape)
        assert rows_MV.shape == (kept, x_JV.shape[1])
        torch.testing.assert_close(rows_MV @ rows_MV.T, torch.eye(kept).double(), rtol=0, atol=1e-5)
        left = (x_JV - x_JV @ rows_MV.T @ rows_MV).square().sum()
        values = torch.linalg.svdvals(x_JV).square()
        assert float(left) == pytest.approx(float(values[kept:].sum()), rel=1e-4, abs=1e-5 * float(values.sum()))


@pytest.mark.parametrize("pairs", [6, 30])
def test_subspace_has_no_directions_that_are_not_there(pairs):
    """Public pairs of rank 2, and rank 5 asked for: a third direction would be rounding, blown up."""
    own = factors(8, 1, 2)
    again = [index % 2 for index in range(pairs)]
    public = Factors(own.r_KJV[:, again], own.h_KJD[:, again], own.weight_KJ[:, again])
    for rows_MV in matrices(fitted("subspace", public=public, rank=5))[:2]:
        torch.testing.assert_close(rows_MV @ rows_MV.T, torch.eye(2), rtol=0, atol=1e-5)


def test_sketch_keeps_inner_products_in_expectation():
    """The mean over 800 sketches lies within four standard errors; each single one is off."""
    a, b = factors(5, sets=1, common=1.0), factors(5, sets=1, common=2.0)  # the same r
    exact, drawn = inner(a, b), []
    for seed in range(800):
        space = fitted("sketch", seed=seed, rank=4)
        found = inner(space(a), space(b))
        drawn.append(torch.stack([found.weight_K[0], found.bias_K[0]]))
    drawn_SQ = torch.stack(drawn)
    error_Q = drawn_SQ.std(0) / len(drawn) ** 0.5
    expected_Q = torch.stack([exact.weight_K[0], exact.bias_K[0]])
    assert bool(((drawn_SQ.mean(0) - expected_Q).abs() < 4 * error_Q).all())
    assert bool((error_Q < 0.25 * expected_Q.abs()).all()), "too few draws to tell"


def test_sketch_is_drawn_from_the_generator_and_leaves_short_factors_alone():
    assert torch.equal(fitted("sketch", seed=1).maps[0].r_MV, fitted("sketch", seed=1).maps[0].r_MV)
    assert not torch.equal(fitted("sketch", seed=1).maps[0].r_MV, fitted("sketch", seed=2).maps[0].r_MV)
    a_MV, b_PD, _ = matrices(fitted("sketch", rank=D))  # as long as h, shorter than r
    assert a_MV.shape == (D, V) and torch.equal(b_PD, torch.eye(D))


# ---- composition


@pytest.mark.parametrize("maps", [own for own in EVERY if len(own) > 1], ids="-".join)
def test_each_map_is_fitted_on_what_the_ones_before_give(maps):
    """The centre, too, is that of the means as they are then."""
    together, seen, means, draw = fitted(*maps), PUBLIC, RELEASED, generator()
    for at, name in enumerate(maps):
        if name == "centred":
            alone = ReleasedTarget(tuple(ClassTarget(own, None) for own in means)).centred().space
        else:
            labels = LABELS if name == "verbaliser" else ()
            alone = fit_space(SpaceConfig(maps=(name,), rank=3), seen, labels, draw)
        for key, value in vars(alone.maps[0]).items():
            got = getattr(together.maps[at], key)
            assert got is value is None or torch.equal(got, value)
        seen, means = alone(seen), [alone(own) for own in means]
    assert len(together.maps) == len(maps)
    for found, expected in zip(together(PUBLIC).tensors(), seen.tensors(), strict=True):
        assert torch.equal(found, expected)


def test_order_matters():
    orders = (("whitened", "subspace"), ("subspace", "whitened"))
    first, second = (inner(own, own).weight_K for own in (fitted(*maps)(factors(1)) for maps in orders))
    assert not torch.allclose(first, second, rtol=0.05)


@pytest.mark.parametrize("maps", EVERY[1:], ids="-".join)
def test_padding_does_not_enter_the_fit(maps):
    junk = Factors(torch.full((1, 9, V), 1e4), torch.full((1, 9, D), -1e4), torch.zeros(1, 9))
    padded = Factors(*(torch.cat(pair, 1) for pair in zip(junk.tensors(), PUBLIC.tensors(), strict=True)))
    assert_same(fitted(*maps, public=padded), fitted(*maps), 1e-5)


def test_public_text_may_come_as_many_sets():
    split = Factors(*(part.unflatten(1, (8, 5)).flatten(0, 1) for part in PUBLIC.tensors()))
    assert split.num_sets == 8
    assert_same(fitted(*EVERY[-2], public=split), fitted(*EVERY[-2]), 1e-5)


@given(
    st.lists(st.sampled_from(["verbaliser", "whitened", "subspace", "sketch"]), max_size=4),
    st.sampled_from(["verbalisers", "vocabulary"]),
)
def test_verbaliser_stands_where_entries_are_still_tokens(maps, loss):
    at = maps.index("verbaliser") if "verbaliser" in maps else 0
    if maps.count("verbaliser") > 1 or {"subspace", "sketch"} & set(maps[:at]):
        with pytest.raises(ValidationError, match="'verbaliser' picks the rows of tokens, and after"):
            SpaceConfig(maps=maps, loss=loss)
    else:
        config, fits = SpaceConfig(maps=maps, loss=loss), {"whitened", "subspace"} & set(maps)
        assert config.needs_public == bool(fits or loss == "verbalisers")
        fitted(*maps)(factors(1))


@pytest.mark.parametrize(
    ("maps", "loss", "told"),
    [
        (
            ["verbaliser", "contrasts"],
            "vocabulary",
            "leave it out with loss 'vocabulary', whose do not, or take verb",
        ),
        (["contrasts", "contrasts"], "verbalisers", "and after 'contrasts' they do not; name it before, and once"),
        (
            ["whitened", "sketch", "contrasts"],
            "verbalisers",
            "and after 'sketch' they do not; name it before, and o",
        ),
    ],
)
def test_contrasts_stand_where_entries_sum_to_0(maps, loss, told):
    with pytest.raises(ValidationError, match=f"'contrasts' takes entries of r that sum to 0[,;] {told}"):
        SpaceConfig(maps=maps, loss=loss)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"maps": ["fourier"]}, {"maps": ["centred"]}, {"loss": "words"}, {"centred": "perhaps"}),
        *({"ridge": 0}, {"rank": 0}, {"public_texts": 0}, {"x": 1}),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        SpaceConfig(**wrong)


# ---- the run folder


@pytest.mark.parametrize("maps", EVERY, ids="-".join)
def test_tensors_come_back(tmp_path, maps):
    space = fitted(*maps)
    save_file(space.tensors(), tmp_path / "space.safetensors")
    assert_same(Space.from_tensors(load_file(tmp_path / "space.safetensors")), space)


def test_maps_without_tensors_and_more_than_ten_maps_come_back_in_order():
    maps = [LinearMap(h_PD=torch.randn(D, D, generator=generator(k)).T.contiguous()) for k in range(12)]
    space = Space([*maps[:3], LinearMap(), *maps[3:]])
    assert_same(Space.from_tensors(space.tensors()), space)


def assert_same(one: Space, other: Space, tolerance: float = 0.0) -> None:
    own = factors(9)
    for found, expected in zip(one(own).tensors(), other(own).tensors(), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
