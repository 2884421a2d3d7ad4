"""What an audit found: plain records that print as a table."""

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass

SEVERITIES = ("note", "warning", "error")
"""In increasing order: worth knowing; slow, or right only under a condition; wrong."""


@dataclass(frozen=True)
class Finding:
    """One thing an audit found.

    Attributes:
        code: a short stable name, such as ``"SUM"``.
        severity: ``"note"``, ``"warning"`` or ``"error"``.
        measured: what was seen, with its numbers.
        advice: what to do about it.

    Examples:
        >>> import bilevax as bx
        >>> bx.Finding("SUM", "error", measured="...", advice="...").severity
        'error'
    """

    code: str
    severity: str
    measured: str
    advice: str


@dataclass(frozen=True)
class Figure:
    """A number that an audit measured on its way."""

    name: str
    value: float


@dataclass(frozen=True)
class Findings:
    """All that an audit found, the worst first; false where it found nothing.

    Attributes:
        items: the findings.
        figures: numbers measured on the way, whether or not anything was wrong.

    Examples:
        >>> found = Findings((Finding("SLOW", "warning", "Spectral radius 0.9995.", "Lengthen the step."),))
        >>> print(found)
        warning  SLOW  Spectral radius 0.9995.
                       Lengthen the step.
        >>> found.worst, len(found), bool(found), bool(Findings(()))
        ('warning', 1, True, False)
    """

    items: tuple[Finding, ...]
    figures: tuple[Figure, ...] = ()

    @property
    def worst(self) -> str | None:
        """The highest severity; None where nothing was found."""
        return max((f.severity for f in self.items), key=SEVERITIES.index, default=None)

    @property
    def codes(self) -> tuple[str, ...]:
        """The code of each finding."""
        return tuple(f.code for f in self.items)

    def records(self) -> list[dict[str, str]]:
        """The findings as plain dictionaries."""
        return [asdict(f) for f in self.items]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Finding:
        return self.items[i]

    def __str__(self) -> str:
        columns = [f.severity for f in self], self.codes
        severities, codes = (max(map(len, column), default=0) for column in columns)
        # measured and advice in a column of their own, under each other
        margin = " " * (severities + codes + 4)
        lines = []
        for f in self.items:
            head = f"{f.severity:<{severities}}  {f.code:<{codes}}  "
            lines.append(textwrap.fill(f.measured, 110, initial_indent=head, subsequent_indent=margin))
            lines.append(textwrap.fill(f.advice, 110, initial_indent=margin, subsequent_indent=margin))
        if not self.items:
            lines.append("nothing found")
        if self.figures:
            lines.append("measured: " + ", ".join(f"{x.name} {x.value:.4g}" for x in self.figures))
        return "\n".join(lines)
