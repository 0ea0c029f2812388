"""Reading a summary that may lack anything, and writing its numbers for people.

A run may have done only a part of the loop, and a metric may be undefined. Whatever is absent, of another type or not
finite reads as None here and is written as `n/a`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from numbers import Real
from typing import Any

ABSENT = "n/a"
# Beyond this a number has overflowed for all that concerns a picture, and axis arithmetic would too.
_HUGE = 1e100


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: Any) -> Sequence[Any]:
    """`value` if it is a list or the like, else an empty one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else ()


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The mappings in a list of mappings."""
    return [item for item in items(value) if isinstance(item, Mapping)]


def number(value: Any) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        n = float(value)
    except OverflowError:
        return None
    # Written so that NaN fails the comparison too.
    return n if abs(n) < _HUGE else None


def numbers(value: Any) -> list[float]:
    """The finite numbers in a list."""
    return [n for n in map(number, items(value)) if n is not None]


def counts(value: Any) -> dict[str, float]:
    """The entries of a mapping of names to numbers that hold a number."""
    return {
        str(name): n for name, n in ((name, number(item)) for name, item in mapping(value).items()) if n is not None
    }


def string(value: Any) -> str:
    """`value` as text; `n/a` where there is none."""
    if value is None or value == "" or (isinstance(value, float) and not math.isfinite(value)):
        return ABSENT
    return str(value)


def words(name: Any) -> str:
    """An identifier as words: `no_feedback_turn` becomes `no feedback turn`."""
    return string(name).replace("_", " ").replace(":", ": ")


def count(value: Any) -> str:
    """A whole number: `12,345`."""
    n = number(value)
    return ABSENT if n is None else f"{round(n):,}"


def decimal(value: Any) -> str:
    """A number with the digits that matter at its size."""
    n = number(value)
    if n is None:
        return ABSENT
    if n == 0:
        return "0"
    if not 1e-3 <= abs(n) < 1e6:
        return f"{n:.1e}"
    digits = 0 if abs(n) >= 1000 or n == round(n) else 1 if abs(n) >= 100 else 2 if abs(n) >= 1 else 3
    return f"{n:,.{digits}f}"


def percent(value: Any) -> str:
    """A share as `61.3 %`."""
    n = number(value)
    return ABSENT if n is None else f"{100 * n:.1f} %"


def milliseconds(value: Any) -> str:
    """Milliseconds: `34.1 ms`."""
    return with_unit(value, "ms")


def seconds(value: Any) -> str:
    """A duration: `0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    n = number(value)
    if n is None:
        return ABSENT
    if n < 100:
        return f"{n:.2f} s" if n < 10 else f"{n:.1f} s"
    whole = round(n)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def moment(value: Any) -> str:
    """An ISO time as `2026-03-14 09:26 UTC`; any other text as it is."""
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return string(value)
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip()


def with_unit(value: Any, unit: str) -> str:
    """A number and its unit; just `n/a` without a number."""
    return ABSENT if number(value) is None else f"{decimal(value)} {unit}"


def change(before: Any, after: Any) -> str:
    """`before → after`; `n/a` where neither is known."""
    if number(before) is None and number(after) is None:
        return ABSENT
    return f"{decimal(before)} → {decimal(after)}"


def total(values: Mapping[str, float]) -> float:
    """Sum of the counts of a mapping."""
    return sum(values.values())
