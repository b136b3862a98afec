"""The methods that a comparison knows: ours, what a user would try instead, and controls.

A method makes a set of texts per class out of a `Material`. Whether it hands out real rows is part of what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gradmm.checkpoints import Within
from gradmm.comparison.coresets import draw_start, herding, k_center
from gradmm.comparison.few_shot import write_after
from gradmm.comparison.material import Material, Need
from gradmm.data.sources import DataConfig, LabelledData, load_data
from gradmm.errors import ConfigError, GradmmError, nearest
from gradmm.gradients.target import ClassTarget, ReleasedTarget
from gradmm.result import texts_of_run
from gradmm.solvers.pool import clean

OURS = "search"
"""The default recipe, which the others are compared with."""
_SHOTS = 4  # real rows in a prompt
_ROUNDS = 20  # of writing, before an LM that repeats what it is shown is given up on
_FILE = "file:"
Kind = Literal["synthetic", "real", "control"]


@dataclass(frozen=True)
class TextSet:
    """What a method made."""

    texts: list[list[str]]
    """Per class."""
    weights: list[list[float]] | None = None
    """In the training loss, per class; None weighs all alike."""


@dataclass(frozen=True)
class Method:
    """A way to come by a set of texts."""

    name: str
    title: str
    """For tables."""
    kind: Kind
    """`real` hands out real rows, `control` is there to be beaten."""
    make: Callable[[Material, int], TextSet]
    """Texts of that many per class."""
    needs: tuple[Need, ...] = ()
    """Shared parts of the material that it uses; their time is counted as its own."""


def _search(material: Material, count: int) -> TextSet:
    selected = material.select("grown", material.aim, count)
    return TextSet(material.refine(material.aim, selected, f"search-{count}"))


def _selection(material: Material, count: int) -> TextSet:
    return TextSet(material.select("grown", material.aim, count))


def _admm(material: Material, count: int) -> TextSet:
    runner = material.search(count, solver="admm").runner
    return TextSet(runner.run(material.target, Within(material.folder, f"admm-{count}"), material.stage).texts)


def _projection(material: Material, count: int) -> TextSet:
    """ADMM without its x-update: what readable projection of the LM's texts gives by itself.

    The best of start and iterates is kept, and by its objective; so the target is noise.
    """
    admm = material.config.admm.model_copy(update={"n_inner": 0})
    runner = material.search(count, solver="admm", admm=admm).runner
    folder = Within(material.folder, f"projection-{count}")
    return TextSet(runner.run(_noise_target(material), folder, material.stage).texts)


def _noise(material: Material, count: int) -> TextSet:
    return _towards(material, "noise", _noise_target(material), count)


def _noise_target(material: Material) -> ReleasedTarget:
    """Gradients drawn at random, of the real ones' size."""
    generator, classes = material.generator("noise"), []
    for own in material.target.classes:
        weight_VD, bias_V = own.materialised()
        drawn = [torch.randn(value.shape, generator=generator) for value in (weight_VD, bias_V)]
        sizes = [float(value.norm()) for value in (weight_VD, bias_V)]
        noise = [(d * (s / d.norm())).to(weight_VD) for d, s in zip(drawn, sizes, strict=True)]
        classes.append(ClassTarget(None, (noise[0], noise[1])))
    return material.with_target(classes)


def _other_class(material: Material, count: int) -> TextSet:
    """Towards the gradient of real rows with the label of the class before."""
    return _towards(material, "other_class", material.labelled_as(-1), count)


def _towards(material: Material, kind: str, target: ReleasedTarget, count: int) -> TextSet:
    """Selection towards another target, the writer's rounds among it."""
    material.grow(kind, target)
    return TextSet(material.select(kind, target, count))


def _lm_random(material: Material, count: int) -> TextSet:
    return TextSet([own[:count] for own in _shuffled(material)])


def _shuffled(material: Material) -> list[list[str]]:
    found = []
    for label, pool in enumerate(material.pools):
        order = torch.randperm(len(pool), generator=material.generator("lm random", label))
        found.append([pool[i].text for i in order.tolist()])
    return found


def _lm_by_label(material: Material, count: int) -> TextSet:
    """The LM's texts whose label is most probable: no gradient has a part in it."""
    pools, scores = material.lm_more
    best = [score_N.argsort(descending=True, stable=True)[:count].tolist() for score_N in scores]
    return TextSet([[pool[i].text for i in own] for pool, own in zip(pools, best, strict=True)])


def _lm_taught(material: Material, count: int) -> TextSet:
    """The LM's texts, at random, of the class that they are of for a model that has learnt the classes from rows.

    What is left of ours without gradients, and without what the writer learns by them.
    """
    found = []
    for label, pool in enumerate(material.taught):
        order = torch.randperm(len(pool), generator=material.generator("lm taught", label))
        found.append([pool[i].text for i in order[:count].tolist()])
    return TextSet(found)


def _lm_few_shot(material: Material, count: int) -> TextSet:
    """What the LM writes after the instruction and four real rows of the class.

    The rows are shown to the LM, so this one sees real text; what it only repeats is written again.
    """
    runner, found = material.search(count).runner, list[list[str]]()
    for label, shown in enumerate(material.real_texts):
        generator, real, own = material.generator("few shot", label), set(map(clean, shown)), list[str]()
        for _ in range(_ROUNDS):
            written = write_after(runner, label, shown, _SHOTS, count - len(own), generator)
            own += [text for text in written if clean(text) not in real]
            if len(own) == count:
                break
        else:
            raise GradmmError(
                f"the LM {material.lm.name!r} repeats the rows that lm_few_shot shows it: {len(own)} of {count} "
                f"texts are its own after {_ROUNDS} tries; leave lm_few_shot out, or raise initial.temperature"
            )
        found.append(own)
    return TextSet(found)


def _real_random(material: Material, count: int) -> TextSet:
    return TextSet(material.draw_rows([count] * material.rows.num_classes))


def _real_all(material: Material, count: int) -> TextSet:
    """The ceiling: all rows, however many texts were asked for."""
    return TextSet([material.rows.texts_of(label) for label in range(material.rows.num_classes)])


def _real_herding(material: Material, count: int) -> TextSet:
    return _by_features(material, count, herding)


def _real_k_center(material: Material, count: int) -> TextSet:
    def choose(features_ND: torch.Tensor, count: int) -> list[int]:
        return k_center(features_ND, count, draw_start(len(features_ND), material.seed))

    return _by_features(material, count, choose)


def _by_features(material: Material, count: int, choose: Callable[[torch.Tensor, int], list[int]]) -> TextSet:
    found = []
    for label, texts in enumerate(material.real_texts):
        chosen = choose(material.features[label], min(count, len(texts)))
        found.append([texts[i] for i in chosen])
    return TextSet(found)


def _real_coreset(material: Material, count: int) -> TextSet:
    """Real rows selected as our texts are: the bound for any synthetic set."""
    return TextSet(material.select("real", material.target, count))


def _both(material: Material, count: int) -> TextSet:
    """Our texts together with all real rows: for where real rows are few."""
    ours, real = _search(material, count).texts, _real_all(material, count).texts
    return TextSet([a + b for a, b in zip(ours, real, strict=True)])


_GROWS: tuple[Need, ...] = ("lm_texts", "space", "target")
_SELECTS: tuple[Need, ...] = (*_GROWS, "aim", "grown", "seen_grown")
_WRITES: tuple[Need, ...] = ("lm_texts", "pools")
METHODS = {
    method.name: method
    for method in (
        Method("search", "gradmm", "synthetic", _search, _SELECTS),
        Method("selection", "gradmm, selection alone", "synthetic", _selection, _SELECTS),
        Method("admm", "gradmm, ADMM", "synthetic", _admm, _GROWS),
        Method("lm_random", "LM samples", "synthetic", _lm_random, _WRITES),
        Method(
            "lm_by_label",
            "LM samples, by label probability",
            "synthetic",
            _lm_by_label,
            ("lm_texts", "lm_more"),
        ),
        Method("lm_taught", "LM samples, labels from rows", "synthetic", _lm_taught, ("lm_texts", "taught")),
        Method("lm_few_shot", "LM samples, few-shot", "synthetic", _lm_few_shot, ()),
        Method("real_random", "real rows, random", "real", _real_random, ()),
        Method("real_herding", "real rows, herding", "real", _real_herding, ("real_texts", "features")),
        Method("real_k_center", "real rows, k-center", "real", _real_k_center, ("real_texts", "features")),
        Method(
            "real_coreset",
            "real rows, by gradient",
            "real",
            _real_coreset,
            ("lm_texts", "space", "target", "real_texts", "seen_real"),
        ),
        Method("real_all", "all real rows", "real", _real_all, ()),
        Method("search_and_real", "gradmm and all real rows", "real", _both, _SELECTS),
        Method("projection", "projection without gradient", "control", _projection, _GROWS),
        Method("noise", "towards noise", "control", _noise, _GROWS),
        Method("other_class", "towards the other class", "control", _other_class, _GROWS),
    )
}
"""By name."""


def get_method(name: str) -> Method:
    """A method by its name; `file:PATH` is the user's own texts.

    Raises:
        ConfigError: if there is no such method.
    """
    if name.startswith(_FILE):
        return Method(name, name, "synthetic", lambda material, count: _own_file(material, count, name))
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}; give file:PATH for texts of your own{nearest(name, METHODS)}")
    return METHODS[name]


def own_texts(name: str, label_names: Sequence[str]) -> LabelledData | None:
    """What the method `file:PATH` hands out; None of another method.

    Raises:
        DataError: if there is nothing such, or it is of other classes.
    """
    path = name.removeprefix(_FILE)
    if path == name:
        return None
    return load_data(texts_of_run(path) or path, DataConfig(classes=tuple(label_names)))


def _own_file(material: Material, count: int, name: str) -> TextSet:
    data = own_texts(name, material.task.task.label_names)
    assert data is not None, name
    drawn = data.sample([min(count, own) for own in data.counts()], material.seed)
    return TextSet([drawn.texts_of(label) for label in range(drawn.num_classes)])
