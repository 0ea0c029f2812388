"""What every benchmark is made of: prompts with several responses, of which some are right.

A benchmark is data and three functions: one that reads its files' records, one that says what a reward model's scores make of
each unit (mostly a prompt), and one that turns means over the units of each group into the published metrics. Intervals,
comparisons, calibration and pictures are the same for all of them and know no benchmark by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.template import Message

Floats = NDArray[np.float64]
Pair = tuple[int, int]
"""Indices of a right and of a wrong response of one item."""

DATA_FLAG = "--data"
_SHOWN = 3
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Row:
    """A record of a benchmark's file.

    Attributes:
        file: the file's name without its folder.
        number: which record of the file it is, from 1.
        value: its fields.
    """

    file: str
    number: int
    value: Mapping[str, Any]

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"record {self.number} of {self.file}"


@dataclass(frozen=True)
class Item:
    """A prompt and the responses that are scored.

    Attributes:
        own_id: the id the benchmark's file gives it; may stand in several groups.
        group: the domain, subset or category that it counts for.
        history: messages before the prompt, a system message included.
        prompt: the user message that is answered.
        responses: [R] texts, in the order in which scores are given.
        correct: [R] whether a response is one that should win.
        attributes: what else the benchmark's metrics need.
    """

    own_id: str
    group: str
    history: tuple[Message, ...]
    prompt: str
    responses: tuple[str, ...]
    correct: tuple[bool, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`group/own_id`: names the item among all of its benchmark."""
        return f"{self.group}/{self.own_id}"


@dataclass(frozen=True)
class Reading:
    """A benchmark's items.

    Attributes:
        items: in the order of the files.
        missing: groups that a whole benchmark has and these files don't.
        excluded: records that the benchmark's own rules leave out, by reason.
    """

    items: tuple[Item, ...]
    missing: tuple[str, ...] = ()
    excluded: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Outcomes:
    """What scores make of each unit that is drawn as a whole when intervals are made.

    Attributes:
        groups: [U] the group of every unit.
        ids: [U] the id of every unit; unique.
        names: [M] what is measured of a unit.
        values: [U, M]; NaN where a unit says nothing about it.
    """

    groups: tuple[str, ...]
    ids: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and how it is measured.

    Attributes:
        name: as `--benchmark` takes it.
        title: as people write it.
        definition: URL of the code or paper that defines its metrics.
        hub: where its files are published: URIs that `--data` takes.
        read: its files' records as items. Raises `UserError` for a record that can't be used; a partial benchmark is never
            taken for a whole one.
        outcomes: (items, scores of each item's responses [R]) -> outcomes.
        combine: (mean of every group's values [..., M], units of every group) -> metrics [...], `accuracy` first. Means are
            NaN where no unit of a group says anything. What it is given may lack groups: it then combines what is there.
        pairs: the pairs of an item that calibration and margins are measured on.
        pairs_are: what those pairs are, in a few words.
        whole: for metrics that are no function of group means: (outcomes, how often each unit counts [R, U]) -> metrics [R],
            `accuracy` first, NaN where undefined. Takes the place of `combine`.
    """

    name: str
    title: str
    definition: str
    hub: tuple[str, ...]
    read: Callable[[Iterable[Row]], Reading]
    outcomes: Callable[[Sequence[Item], Sequence[Floats]], Outcomes]
    combine: Callable[[Mapping[str, Floats], Mapping[str, int]], dict[str, Floats]]
    pairs: Callable[[Item], Sequence[Pair]]
    pairs_are: str
    whole: Callable[[Outcomes, Floats], dict[str, Floats]] | None = None


def text_field(row: Row, name: str) -> str:
    """A field that is a text with something in it.

    Raises:
        UserError: it is missing or anything else.
    """
    value = row.value.get(name)
    if not isinstance(value, str) or not value.strip():
        raise bad_record(row, f"{name} = {_short(value)}: a text is needed")
    return value


def id_field(row: Row, name: str = "id") -> str:
    """An id, which may be a number in the file.

    Raises:
        UserError: it is missing, or neither a text nor a whole number.
    """
    value = row.value.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
        raise bad_record(row, f"{name} = {_short(value)}: an id is needed")
    return str(value)


def texts_field(row: Row, name: str, size: int | None = None) -> tuple[str, ...]:
    """A field that is a list of texts, or one text, which stands for a list of one. A response may be empty: that is a reply too.

    Raises:
        UserError: it is missing, has no entries or not `size` of them, or one of them is no text.
    """
    value = row.value.get(name)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise bad_record(row, f"{name} = {_short(value)}: a list of texts is needed")
    if size is not None and len(texts) != size:
        raise bad_record(row, f"{name} has {len(texts)} texts: {size} are needed")
    return tuple(texts)


def messages_field(row: Row, name: str) -> tuple[Message, ...]:
    """A field that is a list of chat messages, which may be empty.

    Raises:
        UserError: it is no list, or one of its messages has no text or a role that isn't known.
    """
    value = row.value.get(name)
    if not isinstance(value, (list, tuple)):
        raise bad_record(row, f"{name} is a {type(value).__name__}: a list of messages is needed")
    return tuple(_message(row, f"message {number} of {name}", part) for number, part in enumerate(value, start=1))


def _message(row: Row, place: str, value: object) -> Message:
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise bad_record(row, f"{place} has no content that is a text")
    if value.get("role") not in _ROLES:
        raise bad_record(row, f"{place} has the role {value.get('role')!r}: known are {', '.join(_ROLES)}")
    return {"role": value["role"], "content": value["content"]}


def bad_record(row: Row, problem: str) -> UserError:
    """The error of a record that can't be used."""
    return UserError(f"{row.place}: {problem}", flag=DATA_FLAG)


def check_unique(items: Sequence[Item]) -> None:
    """Return if no id stands twice in one group.

    Raises:
        UserError: one does; names the first.
    """
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise UserError(f"{len(twice)} ids stand twice in the benchmark: {some(twice)}", flag=DATA_FLAG)


def some(names: Sequence[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
