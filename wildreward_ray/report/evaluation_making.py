"""How an evaluation was made: where its scores come from, how fast, with which settings and versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from wildreward_ray.core.config.base import leaves
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.report.evaluation_blocks import absent
from wildreward_ray.report.evaluation_tables import (
    without_password,
)
from wildreward_ray.report.markup import Child, Html, el, join
from wildreward_ray.report.page import (
    facts,
    note,
    table,
)
from wildreward_ray.report.values import (
    count,
    decimal,
    mapping,
    seconds,
    string,
    words,
)

_LONGEST_VALUE = 300
_NOT_SET = "not set"


def making_section(results: Mapping[str, Any]) -> list[Child]:
    """Source, speed, settings and versions."""
    speed = mapping(results.get("speed"))
    kinds = {"model": "a model loaded here", "service": "a service", "scores": "a file of scores"}
    source = [
        [words(name), el("span", kinds.get(value, value) if name == "kind" else value, class_="long")]
        for name, value in flat(mapping(results.get("source")))
    ]
    versions = [[string(name), string(v)] for name, v in mapping(results.get("versions")).items()]
    return [
        note("What gave the scores, with which settings and versions: enough to measure the same again."),
        table(["Source", "Value"], source) if source else absent("Source", "not recorded"),
        facts(
            ("time", seconds(speed.get("seconds")), "Wall time of scoring."),
            ("responses a second", decimal(speed.get("responses_per_s")), "Scored in this run."),
            ("reused", count(speed.get("reused")), "Responses that an earlier, killed run had scored."),
        )
        if speed
        else absent("Speed", "nothing was scored here, or it was not recorded"),
        el("h3", "Settings"),
        _settings(mapping(results.get("config"))),
        el("h3", "Versions"),
        table(["Package", "Version"], versions) if versions else absent("Versions", "not recorded"),
    ]


def _settings(config: Mapping[str, Any]) -> Html:
    if not config:
        return absent("Settings", "not recorded")
    known = {name: field.description or "" for name, field in leaves(EvaluateConfig)}
    written = list(flat(config))
    given = [[n, el("span", value, class_="long"), known.get(n, "")] for n, value in written if value != _NOT_SET]
    unset = ", ".join(n for n, value in written if value == _NOT_SET)
    return join(
        table(["Setting", "Value", "What it is"], given) if given else None,
        note(f"Not set: {unset}.") if unset else None,
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as text, without passwords."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
            continue
        nested = isinstance(value, list | tuple | dict)
        said = json.dumps(value, ensure_ascii=False, default=str) if nested else string(value)
        said = _NOT_SET if value is None else "yes" if value is True else "no" if value is False else said
        said = without_password(said)
        yield f"{prefix}{name}", said if len(said) <= _LONGEST_VALUE else said[:_LONGEST_VALUE] + "…"
