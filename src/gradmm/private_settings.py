"""Settings where a run is private: other defaults, and what is refused because it would look at real rows.

Past the release everything is post-processing, so what remains is whatever else settings can ask of real rows.
Each is public configuration, or an error that names the leak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from gradmm.data.rows import DataConfig
from gradmm.errors import ConfigError
from gradmm.gradients.shrinkage import ShrinkageConfig
from gradmm.gradients.spaces import LossName, MapName, SpaceConfig
from gradmm.labelling import LabelCheckConfig
from gradmm.privacy.config import PrivacyConfig
from gradmm.solvers.pool import PoolConfig
from gradmm.training.writer import WriterConfig

MAPS: dict[LossName, tuple[MapName, ...]] = {
    "verbalisers": ("verbaliser", "contrasts", "whitened"),
    "vocabulary": ("verbaliser", "whitened"),
}
"""The space of a loss where none is named: small, so that the target stands out of the noise."""
LM_ALONE = "lm"
"""References where none are named: those that no real row has a part in."""


class Settings(Protocol):
    """What is looked at of the settings of `generate`."""

    @property
    def privacy(self) -> PrivacyConfig | None: ...  # noqa: D102
    @property
    def references(self) -> Any: ...  # noqa: D102
    @property
    def nearest_rows(self) -> bool: ...  # noqa: D102
    @property
    def class_balance(self) -> str: ...  # noqa: D102
    @property
    def pool(self) -> PoolConfig: ...  # noqa: D102
    @property
    def writer(self) -> WriterConfig: ...  # noqa: D102
    @property
    def label_check(self) -> LabelCheckConfig: ...  # noqa: D102
    @property
    def shrinkage(self) -> ShrinkageConfig: ...  # noqa: D102


def with_private_defaults(given: Any) -> Any:
    """Settings as they were given, with what a private run takes by default where nothing is."""
    if not isinstance(given, dict) or given.get("privacy") is None:
        return given
    space = given.get("space")
    loss = space.get("loss") if isinstance(space, Mapping) else getattr(space, "loss", None)
    maps = MAPS["vocabulary" if loss == "vocabulary" else "verbalisers"]
    small = _with_default(SpaceConfig, space, "maps", maps)
    alone = _with_default(ShrinkageConfig, given.get("shrinkage"), "weight", 0.0)
    who = "target" if _tells_classes(small, given.get("writer")) else "model"
    reader = _with_default(LabelCheckConfig, given.get("label_check"), "reader", who)
    return {"references": LM_ALONE, **given, "space": small, "shrinkage": alone, "label_check": reader}


def _tells_classes(space: Any, writer: Any) -> bool:
    """Whether a target says anything by which a text's class can be read. What is no setting is told elsewhere."""
    try:
        states = SpaceConfig.model_validate(space).tells_states
        return states or WriterConfig.model_validate(writer or {}).follows_words
    except ValidationError:
        return True


def _with_default(group: type[BaseModel], given: Any, name: str, default: Any) -> Any:
    """A group of settings as it was given, with another default of one of them."""
    if given is None:
        return group(**{name: default})
    if isinstance(given, group):
        return given if name in given.model_fields_set else given.model_copy(update={name: default})
    return {name: default, **given} if isinstance(given, Mapping) else given


def refuse_leaks(settings: Settings) -> None:
    """Whether a private run would look at real rows for anything but the release.

    Raises:
        ConfigError: if it would, naming what for.
    """
    privacy = settings.privacy
    if privacy is None:
        return
    if settings.references is True:
        raise ConfigError(
            "references is true, which measures real rows, and metrics.json would hold the figures without any "
            f"noise; take references: {LM_ALONE} (the LM's samples alone, the default with privacy) or false, and "
            "compare with real rows apart, by `gradmm compare` or `gradmm evaluate`, whose output is not private"
        )
    if settings.nearest_rows:
        raise ConfigError(
            "nearest_rows is true, which puts real rows into the run folder, word for word; leave it out with "
            "privacy"
        )
    if settings.class_balance == "proportional" and privacy.public_counts is None:
        raise ConfigError(
            "class_balance is 'proportional', and how many real rows each class has would show in the result; "
            "give privacy.public_counts (which then are public), list texts_per_class, or take class_balance: "
            "equal"
        )
    if settings.shrinkage.weight != 0:
        raise ConfigError(
            f"shrinkage.weight is {settings.shrinkage.weight!r}, and a private run aims at the release as it is: "
            "how much real rows disagree would be another look at them; leave it out with privacy"
        )
    if settings.label_check.knows_rows:
        raise ConfigError(
            "label_check.reader is 'rows', which learns from real rows what class a text is of; leave it out with "
            "privacy, or take label_check.reader: target (what is released of the classes says it) or model"
        )
    for name, files in (("pool.files", settings.pool.files), ("writer.files", settings.writer.files)):
        if files and not privacy.files_are_public:
            raise ConfigError(
                f"{name} brings texts of {', '.join(files)}, which may stand in the result word for word; set "
                "privacy.files_are_public to true if they have nothing to do with the real rows, else leave them "
                "out"
            )


def refuse_drawn_rows(data: DataConfig) -> None:
    """Whether one row more or less decides which other rows are taken.

    Raises:
        ConfigError: if it does: the promise is about one row, and it would change many.
    """
    remedy = "one row more or less would change which others are taken; save those rows as a file and give that"
    if data.max_rows_per_class is not None:
        raise ConfigError(
            f"data.max_rows_per_class is {data.max_rows_per_class}, which draws from the real rows: {remedy}"
        )
    if "[" in data.split:
        raise ConfigError(f"data.split is {data.split!r}, a slice of the real rows: {remedy}")


def refuse_found_classes() -> None:
    """That the classes' names are those that stand in the real rows.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "task has no names of classes, so they would be those that stand in the real rows; give task.verbalisers "
        "(--verbaliser), or data.label_names or data.classes"
    )
