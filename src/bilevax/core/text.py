"""Words and numbers as a page shows them; every string of a run is taken for hostile."""

import math
import re
import unicodedata
from collections.abc import Iterable

_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # OSC: titles, links
    r"|\x1b[ -/]*[0-~]"
)
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Invisible, but part of how some scripts and emoji are written.
_JOINERS = "\u200c\u200d"
_LONGEST = 500


def clean(value: object) -> str:
    r"""A value as one line of harmless text: no terminal escapes, control characters or direction overrides.

    >>> clean("\x1b[31mage\x1b[0m\r\n(years)\u202e")
    'age (years)'
    """
    # Whole sequences first: without its ESC what is left of "\x1b[31m" would be shown.
    text = _ESCAPE_SEQUENCE.sub("", value if isinstance(value, str) else str(value))
    # Nearly all texts are printable: the slow way is for the others.
    if not text.isprintable():
        text = "".join(_character(c) for c in text)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _character(c: str) -> str:
    category = unicodedata.category(c)
    if c in "\t\n\r\v\f" or category in ("Zs", "Zl", "Zp"):
        return " "
    # Cc control, Cs surrogate, Cn unassigned; Cf has the direction overrides, by which a text reads as another.
    hidden = category in ("Cc", "Cs", "Cn") or (category == "Cf" and c not in _JOINERS)
    return "" if hidden else c


def shorten(text: str, width: int) -> str:
    """The text within ``width`` columns, an ellipsis in the middle where it was longer.

    >>> shorten("concave points error of the nucleus", 20)
    'concave poin…nucleus'
    """
    if _columns(text) <= width:
        return text
    # Three fifths from the beginning: names that differ at the end alone stay apart.
    head, tail = _fit(text, math.ceil(0.6 * (width - 1))), _fit(text[::-1], int(0.4 * (width - 1)))[::-1]
    return f"{head.rstrip()}…{tail.lstrip()}"


def _fit(text: str, width: int) -> str:
    taken = 0
    for i, c in enumerate(text):
        taken += _columns(c)
        if taken > width:
            return text[:i]
    return text


def _columns(text: str) -> int:
    """Width in columns: an ideograph takes two, a combining mark none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def decimal(x: float, places: int) -> str:
    """A number with fixed decimals and a true minus sign; a dash where there is none.

    >>> decimal(-0.01234, 3)
    '−0.012'
    """
    if not math.isfinite(x):
        return "–"
    text = f"{x:,.{places}f}"
    # What is rounded to zero has no sign.
    if text.startswith("-") and not text.strip("-0.,"):
        text = text[1:]
    return text.replace("-", "−")


def places_for(spread: float) -> int:
    """The decimals that show two significant digits of a spread, between 3 and 8.

    >>> places_for(0.0081), places_for(0.4)
    (4, 3)
    """
    if not (math.isfinite(spread) and spread > 0):
        return 4
    # 10^e <= spread < 10^(e + 1): its second digit is the decimal 1 - e
    return min(8, max(3, 1 - math.floor(math.log10(spread))))


def significant(x: float, digits: int = 3) -> str:
    """A number to some significant digits, in powers of ten where it is very small or large.

    >>> significant(0.01234), significant(1234567.0), significant(2.5e-7)
    ('0.0123', '1.23·10⁶', '2.50·10⁻⁷')
    """
    if not math.isfinite(x):
        return "–"
    if x == 0:
        return "0"
    # By way of the rounded number: 9.996 has three digits as 10.0, and the exponent of that.
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    if -4 <= int(exponent) < 5:
        return decimal(x, max(0, digits - 1 - int(exponent)))
    return f"{mantissa.replace('-', '−')}·{power(int(exponent))}"


def power(exponent: int) -> str:
    """A power of ten.

    >>> power(-3)
    '10⁻³'
    """
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def count(x: float) -> str:
    """A whole number with separators.

    >>> count(42000)
    '42,000'
    """
    return decimal(x, 0)


def short_count(x: float, _position: object = None) -> str:
    """A count in a few characters, as tick labels want it.

    >>> short_count(2_500_000), short_count(12_000), short_count(40), short_count(0.25)
    ('2.5 M', '12 k', '40', '0.25')
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.4g} {letter}".replace("-", "−")
    return f"{x:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """A time as a person says it.

    >>> duration(0.0123), duration(72.0), duration(3700.0)
    ('12 ms', '1 min 12 s', '1 h 2 min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:  # else it would be shown as 60.0 s
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def percent(fraction: float, places: int = 1) -> str:
    """A fraction in per cent, with a space that does not break.

    >>> percent(0.8561)
    '85.6\u202f%'
    """
    return "–" if not math.isfinite(fraction) else f"{decimal(100 * fraction, places)}\u202f%"


def counted(n: int, noun: str) -> str:
    """A number and its noun, in the plural where it is one.

    >>> counted(1, "penalty"), counted(784, "penalty"), counted(2, "class")
    ('1 penalty', '784 penalties', '2 classes')
    """
    if n != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count(n)} {noun}"


def listed(words: Iterable[str]) -> str:
    """Words as a list in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last
