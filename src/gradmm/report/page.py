"""What a report is put together from: sections, and the few kinds of parts that these have.

All strings here are text, whatever they hold: the template escapes them. Only charts come as markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    """A sentence or some."""

    text: str
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Lead:
    """The sentences that say most."""

    text: str
    kind: ClassVar[str] = "lead"


@dataclass(frozen=True)
class Caution:
    """What a reader must not overlook."""

    text: str
    kind: ClassVar[str] = "warning"


@dataclass(frozen=True)
class Row:
    """The first cell is the row's heading."""

    cells: Sequence[str]
    is_ours: bool = False


@dataclass(frozen=True)
class Table:
    """Rows in groups; a group without a name has no heading."""

    caption: str
    head: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Row]]]
    text_columns: Sequence[int] = (0,)
    """Columns that are words and not numbers."""
    kind: ClassVar[str] = "table"


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)
) -> Table:
    """One group of rows."""
    return Table(caption, head, [("", [Row(cells) for cells in rows])], text_columns)


@dataclass(frozen=True)
class Beside:
    """Tables side by side, where there is room."""

    tables: Sequence[Table]
    kind: ClassVar[str] = "beside"


@dataclass(frozen=True)
class Charts:
    """Pictures side by side, where there is room."""

    drawn: Sequence[Markup]
    kind: ClassVar[str] = "charts"


@dataclass(frozen=True)
class Code:
    """Lines to copy, or a file; folded if it is long."""

    title: str
    text: str
    is_folded: bool = False
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Folded:
    """A table that is there for whoever wants it."""

    title: str
    table: Table
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True)
class TextCell:
    """A cell of the table of texts, with the value that it is sorted by."""

    shown: str
    value: float | None = None


@dataclass(frozen=True)
class Browser:
    """The table of texts."""

    columns: Sequence[str]
    """Names of those after class and text."""
    labels: Sequence[str]
    rows: Sequence[tuple[int, int, str, Sequence[TextCell]]]
    """Number of the row, label, text, and the other cells."""
    total: int
    """Texts in the data set; more than `rows` where not all fit."""
    kind: ClassVar[str] = "browser"


Part = Paragraph | Lead | Caution | Table | Beside | Charts | Code | Folded | Browser


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    key: str
    """For links, within the run."""
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Chapter:
    """A run."""

    name: str
    """Of its folder."""
    what: str
    """A generation or a comparison, in a word or two."""
    sections: Sequence[Section]
    facts: dict[str, Any] = field(default_factory=dict)
    """A row for the table of several runs."""
