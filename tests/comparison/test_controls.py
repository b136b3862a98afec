"""The controls of a comparison, which are there to be beaten: other labels, noise, projection alone."""

from __future__ import annotations

import pytest

from gradmm.comparison.material import Material
from gradmm.comparison.methods import METHODS
from gradmm.config import GenerateConfig
from gradmm.data.sources import load_data
from gradmm.data.task import BoundTask, Task
from gradmm.gradients.distances import DistanceConfig, distance_between
from gradmm.gradients.exact_target import compute_target
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.models import LanguageModel
from material_tools import COUNT, SMALL, MakeMaterial
from store_tools import Kept


def target_of(name: str, material: Material, monkeypatch: pytest.MonkeyPatch) -> ReleasedTarget:
    """What a control selects towards."""
    seen: list[ReleasedTarget] = []

    def select(kind: str, target: ReleasedTarget, count: int) -> list[list[str]]:
        seen.append(target)
        return []

    monkeypatch.setattr(material, "select", select)
    METHODS[name].make(material, COUNT)
    return seen[0]


def test_another_label_of_the_rows_is_another_target(
    make_material: MakeMaterial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To exchange two classes' targets would leave the mean of both as it is."""
    material = make_material()
    own, other = material.target, target_of("other_class", material, monkeypatch)
    swapped = [[rows] for rows in (material.rows.texts_of(1), material.rows.texts_of(0))]
    expected = compute_target(material.lm, material.task, swapped, space=material.space).centred()
    for found, wanted in zip(other.classes, expected.classes, strict=True):
        assert apart(material, found, wanted) < 1e-5
    assert other.space.loss is material.space.loss and other.space.maps[:-1] == material.space.maps
    both = [target.together([0, 1], [COUNT, COUNT]) for target in (own, other)]
    assert apart(material, *both) > 0.5
    exchanged = material.with_target(own.classes[::-1]).together([0, 1], [COUNT, COUNT])
    assert apart(material, both[0], exchanged) < 1e-5, "nothing like it"


def test_rows_get_the_label_of_the_class_before(lm: LanguageModel) -> None:
    words = {"dull": " boring", "fine": " good", "rude": " awful"}
    task = Task(label_names=tuple(words), verbalisers=tuple(words.values()), template="{text} The film is")
    rows = load_data([{"text": f"A {name} film {n}.", "label": name} for name in words for n in range(2)])
    bound, config = BoundTask(task, lm.tokenizer, lm.max_length), GenerateConfig.model_validate(SMALL)
    material = Material(lm, bound, rows, config, 0, Kept(), COUNT)
    for shift, order in ((0, (0, 1, 2)), (-1, (1, 2, 0)), (1, (2, 0, 1))):
        texts = [[rows.texts_of(label)] for label in order]
        expected = compute_target(lm, bound, texts, space=material.space).centred()
        for found, wanted in zip(material.labelled_as(shift).classes, expected.classes, strict=True):
            assert apart(material, found, wanted) < 1e-5


def apart(material: Material, one: ClassTarget, other: ClassTarget) -> float:
    """How far two gradients are apart, beside what they are long."""
    return distance_between(DistanceConfig(name="relative_l2"), one, other, material.lm.head.bias_V is not None)


def test_noise_has_the_targets_size_and_not_its_direction(
    make_material: MakeMaterial, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = make_material(space={"loss": "vocabulary", "maps": []})  # of so many numbers that chance is small
    target = target_of("noise", material, monkeypatch)
    assert target.space is material.target.space and target.whole is None, "the form is not the real rows' either"
    for own, other in zip(material.target.classes, target.classes, strict=True):
        for value, drawn in zip(own.materialised(), other.materialised(), strict=True):
            assert float(drawn.norm()) == pytest.approx(float(value.norm()), rel=1e-4)
        (a, _), (b, _) = own.materialised(), other.materialised()
        assert abs(float((a * b).sum() / (a.norm() * b.norm()))) < 0.1
    (a, _), (b, _) = (one.materialised() for one in target.classes)
    assert abs(float((a * b).sum() / (a.norm() * b.norm()))) < 0.1


def test_projection_makes_no_step_towards_the_target(make_material: MakeMaterial) -> None:
    for name, steps in (("projection", 0), ("admm", 2)):
        material = make_material()
        METHODS[name].make(material, COUNT)
        assert isinstance(material.folder, Kept)
        own = [state for key, (state, _) in material.folder.states.items() if key.startswith(f"{name}-{COUNT}-")]
        assert [int(state["inner"]) for state in own] == [steps] * len(own) != []
        assert all(bool(state["moment1"].any()) == bool(steps) for state in own)


def test_projection_does_not_know_the_target(make_material: MakeMaterial) -> None:
    one, other = make_material(), make_material()
    other.__dict__["target"] = other.with_target(other.target.classes[::-1])
    own, swapped = (METHODS["projection"].make(material, COUNT) for material in (one, other))
    assert own == swapped
    assert [len(set(texts)) for texts in own.texts] == [COUNT] * len(own.texts)
