"""The settings of privacy: what is promised (`Promise`, `Budget`), and how a target is released (`PrivacyConfig`).

What a promise depends on has no default: the relation, epsilon and delta are the user's to choose, and where one
is missing the error says what there is to choose. Numbers of rows that stand here are public: whoever reads the
settings or the release knows them.

No torch here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gradmm.errors import ConfigError, listed, nearest
from gradmm.privacy.accounting import LEAST_DELTA, Accountant, Relation

UNIT = "row"
"""What is protected: one row of the data, whoever wrote it."""
MEANINGS: dict[Relation, str] = {
    "add_or_remove_one": "the data and the same with any one row more or less look alike in what is released, so "
    "that it stays hidden whether a row is there at all",
    "replace_one": "the data and the same with any one row exchanged for another look alike in what is released; "
    "how many rows there are is known, and the same epsilon takes twice the noise",
}
"""What either relation promises, up to epsilon and delta."""
_MISSING = {
    "neighboring_relation": "neighboring_relation is missing, and what epsilon promises depends on it; choose "
    "(--neighboring-relation on the command line):\n"
    + "\n".join(f"  {name}: {meaning}" for name, meaning in MEANINGS.items())
    + "\nIf in doubt: add_or_remove_one is what most papers on differentially private training report",
    "target_delta": "target_delta is missing: the probability with which the promise of epsilon may fail "
    "(--delta); choose one far below 1 / number of rows, such as 1e-5 for a few thousand rows, or 'auto', which "
    "is 1 / n^1.2 of a public number of rows (num_rows)",
    "target_epsilon": "target_epsilon is missing: the whole budget, for everything that is released (--epsilon); "
    "1 is a strong promise, 8 a weak one",
}
Given = TypeVar("Given", bound=BaseModel)


def _number_or(word: str) -> Callable[[Any], Any]:
    def read(given: Any) -> Any:
        try:
            number = None if given == word else float(given)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise ValueError(f"give a number, or {word!r}")
        return given if number is None else number

    return read


class Promise(BaseModel):
    """Between which data sets, and with which delta, an epsilon holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    neighboring_relation: Relation
    """Which data sets look alike in what is released; `MEANINGS` says what either means."""
    target_delta: Annotated[float | Literal["auto"], BeforeValidator(_number_or("auto"))]
    """Probability with which the promise may fail; `auto` is 1 / n^1.2 of the public number of rows."""
    num_rows: int | None = Field(None, ge=2)
    """Public number of rows, of all classes together."""
    public_counts: dict[str, int] | None = None
    """Public number of rows for each label name."""
    accountant: Accountant = "pld"
    """Whose epsilon is held to the target; the other one is shown beside it."""

    @model_validator(mode="before")
    @classmethod
    def _is_chosen(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, words in _MISSING.items():
                if name in cls.model_fields and given.get(name) is None:
                    raise ValueError(words)
        return given

    @model_validator(mode="after")
    def _counts_agree(self) -> Promise:
        counts = self.public_counts
        if counts is not None and (not counts or min(counts.values()) < 1):
            raise ValueError(f"public_counts is {counts}; give a number of at least 1 for every label name")
        if counts is not None and self.num_rows not in (None, sum(counts.values())):
            raise ValueError(
                f"num_rows is {self.num_rows:,}, but public_counts add up to {sum(counts.values()):,}; give one "
                "of both, or mend either"
            )
        return self

    @model_validator(mode="after")
    def _delta_means_something(self) -> Promise:
        rows = self.rows
        if self.target_delta == "auto":
            if rows is None:
                raise ValueError(
                    "target_delta is 'auto', 1 / n^1.2 of a public number of rows, and there is none; give "
                    "num_rows (which then is public), or a number for target_delta"
                )
            return self
        if not LEAST_DELTA <= self.target_delta < 1:
            raise ValueError(f"target_delta is {self.target_delta:g}; give one from {LEAST_DELTA:g} to below 1")
        if rows is not None and self.target_delta * rows >= 1:
            raise ValueError(
                f"target_delta is {self.target_delta:g} with {rows:,} rows: publishing a whole row at random "
                f"would keep such a promise; give one far below 1 / {rows:,}, or 'auto'"
            )
        return self

    @property
    def rows(self) -> int | None:
        """The public number of rows; None where it is not public."""
        return self.num_rows if self.public_counts is None else sum(self.public_counts.values())

    @property
    def delta(self) -> float:
        """The delta, as a number."""
        if self.target_delta != "auto":
            return self.target_delta
        assert self.rows is not None, "refused above"
        return float(self.rows**-1.2)


class Budget(Promise):
    """How much may be spent."""

    target_epsilon: float = Field(ge=1e-3, le=100)
    """Everything that is released from the rows, composed, stays within it."""


class PrivacyConfig(Budget):
    """How the target is released."""

    max_grad_norm: Annotated[float | Literal["public_median"], BeforeValidator(_number_or("public_median"))] = (
        "public_median"
    )
    """Clip C: L2 norm, in the space, that no row's gradient exceeds. `public_median`: of the gradients of texts
    that the LM wrote. One that is computed from the rows is not offered."""
    clip_factor: float = Field(1.0, gt=0)
    """Of the median: C = factor * median."""
    count: Literal["public", "noisy"] = "public"
    """What sums are divided by: `public_counts` (or `num_rows`, in equal shares), or numbers of rows that are
    released with noise of their own."""
    count_fraction: float = Field(0.05, gt=0, lt=1)
    """Of the budget, for noisy counts."""
    words_fraction: float = Field(0.5, gt=0, lt=1)
    """Of the budget, for shares of words, where the writer is tilted by them (`writer.unigram_step`)."""
    files_are_public: bool = False
    """The texts of `pool.files` and `writer.files` have nothing to do with the rows, and may be published word for
    word."""

    @model_validator(mode="after")
    def _clips(self) -> PrivacyConfig:
        if self.max_grad_norm != "public_median" and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm:g}; give a number above 0, or 'public_median'")
        return self

    @model_validator(mode="after")
    def _divides(self) -> PrivacyConfig:
        if self.count == "public" and self.rows is None:
            raise ValueError(
                "count is 'public', and no number of rows is; give num_rows or public_counts (which then are "
                "public), or take count: noisy, which spends part of the budget"
            )
        if self.count == "noisy" and self.public_counts is not None:
            raise ValueError("count is 'noisy', but public_counts tell the numbers; leave out either")
        return self

    def divisors(self, label_names: Sequence[str]) -> tuple[float, ...] | None:
        """What each class's sum is divided by; None where counts are noisy.

        Raises:
            ConfigError: if `public_counts` lists other classes.
        """
        if self.count == "noisy":
            return None
        if self.public_counts is None:
            assert self.num_rows is not None, "refused above"
            return (self.num_rows / len(label_names),) * len(label_names)
        for name in self.public_counts:
            if name not in label_names:
                raise ConfigError(f"public_counts lists {name!r}, which is no class{nearest(name, label_names)}")
        missing = [name for name in label_names if name not in self.public_counts]
        if missing:
            raise ConfigError(f"public_counts lists no number for {listed(missing)}; give one for every class")
        return tuple(float(self.public_counts[name]) for name in label_names)


def read_privacy(model: type[Given], given: Mapping[str, Any]) -> Given:
    """Settings from a mapping, as the command line has them; None means not given.

    Raises:
        ConfigError: if they are not what they should be, naming them.
    """
    try:
        return model.model_validate({key: value for key, value in given.items() if value is not None})
    except ValidationError as err:
        raise ConfigError("\n".join(_sentence(error) for error in err.errors())) from err


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {message} (it is {error['input']!r})" if where else message
