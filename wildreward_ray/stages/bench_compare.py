"""`wildreward bench compare`: every ratio and rate of two benches, the newer over the older.

Rates of different machines don't compare, so they are shown and never called fallen; ratios are, since both of their sides
ran on the same machine. Nothing here runs a bench: it reads what `--output` wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from wildreward_ray.core.config.bench import BenchConfig, OneStage
from wildreward_ray.core.errors import UserError, WildRewardError
from wildreward_ray.stages.bench_ratios import RATIOS, aligned, measured

Figures = dict[str, Any]

_FLAG = "--files"
_RATE = "_per_s"
_MACHINE = ("cpu", "cpus", "memory_gib", "gpus")
_VERSION = "version_"
# Settings that change nothing that is measured.
_BESIDE = ("stage", "stages", "output", "files", "tolerance", "strict")
# Quotients of decimal fractions miss the edge of the tolerance by rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BenchFile:
    """An output of `wildreward bench`, of one stage or of all.

    Attributes:
        path: as given.
        figures: by stage.
        failed: errors of stages that gave no figures, by stage.
        machine, versions, settings: facts by name; settings are dotted.
        commit: of the checkout it ran in, or None.
    """

    path: str
    figures: dict[str, Figures]
    failed: dict[str, str]
    machine: Figures
    versions: Figures
    settings: Figures
    commit: str | None


def read(path: str) -> BenchFile:
    """Read a file that `wildreward bench … --output` wrote.

    Raises:
        UserError: it can't be read, or is something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"can't read {path!r}: {e.strerror}", flag=_FLAG) from e
    except ValueError as e:
        raise UserError(f"{path!r} is no output of `wildreward bench`: it is not JSON: {e}", flag=_FLAG) from e
    stage = found.get("stage") if isinstance(found, dict) else None
    if stage == "all" and isinstance(found.get("benches"), dict):
        benches = found["benches"]
    elif stage in get_args(OneStage):
        benches = {stage: {"figures": found}}
    else:
        raise UserError(f"{path!r} is no output of a bench: its stage is {stage!r}", flag=_FLAG)
    for name, bench in benches.items():
        if not isinstance(bench, dict) or not (isinstance(bench.get("figures"), dict) or "error" in bench):
            raise UserError(
                f"{path!r} is no whole output of `bench all`: {name} has neither figures nor error", flag=_FLAG
            )
    return BenchFile(
        path,
        {stage: bench["figures"] for stage, bench in benches.items() if "figures" in bench},
        {stage: str(bench["error"]) for stage, bench in benches.items() if "error" in bench},
        {name: found.get(name) for name in _MACHINE},
        found.get("versions") or {k.removeprefix(_VERSION): v for k, v in found.items() if k.startswith(_VERSION)},
        {name: value for name, value in _dotted(found.get("config") or {}) if name.split(".")[0] not in _BESIDE},
        found.get("commit"),
    )


def compare(config: BenchConfig) -> Figures:
    """Compare the two files of `config.files`.

    Returns:
        `files`, `commits`: old and new; `tolerance`; `differ`: `machine`, `versions` and `settings`, each name -> [old, new];
        `rows`: `bench`, `name`, `kind` (ratio or rate), `old`, `new` (None where a file has none), `new_over_old` (None where
        it is undefined), `less_is_better` and `fell`; `failed`: errors of either file by stage, as `old` and `new`; `fell`:
        names of what got worse by more than the tolerance, and of benches that fail only now.

    Raises:
        UserError: not two files, one is no output of a bench, they are of different stages, or have no rate and no ratio.
    """
    if len(config.files or ()) != 2:
        given = " ".join(config.files or ()) or "nothing"
        raise UserError(f"two outputs of `wildreward bench` are compared, OLD and NEW, not {given!r}", flag=_FLAG)
    old, new = (read(path) for path in config.files or ())
    stages = [sorted({*file.figures, *file.failed}) for file in (old, new)]
    if stages[0] != stages[1]:
        raise UserError(
            f"{old.path!r} is of {', '.join(stages[0])} and {new.path!r} of {', '.join(stages[1])}: only benches of the same "
            "stages compare",
            flag=_FLAG,
        )
    differ = {
        "machine": _differing(old.machine, new.machine, old.machine),
        "versions": _differing(old.versions, new.versions, {**old.versions, **new.versions}),
        # A setting that only one version of the package knows says nothing about the other one.
        "settings": _differing(old.settings, new.settings, old.settings.keys() & new.settings.keys()),
    }
    rows = [
        row
        for stage in old.figures
        if stage in new.figures
        for row in _rows(stage, old, new, config.tolerance, same_machine=not differ["machine"])
    ]
    failed = {"old": old.failed, "new": new.failed}
    if not rows and not any(failed.values()):
        raise UserError(f"{old.path!r} and {new.path!r} have neither a ratio nor a rate", flag=_FLAG)
    return {
        "stage": "compare",
        "files": [old.path, new.path],
        "commits": [old.commit, new.commit],
        "tolerance": config.tolerance,
        "differ": differ,
        "rows": rows,
        "failed": failed,
        "fell": [f"{row['bench']} {row['name']}" for row in rows if row["fell"]]
        + [f"{stage} (it failed)" for stage in new.failed if stage in old.figures],
    }


def text(found: Figures) -> str:
    """A comparison to be printed: what differs about the runs themselves, then a line for every ratio and rate."""
    lines = [
        f"{age}: {path}, commit {commit or 'unknown'}"
        for age, path, commit in zip(("old", "new"), found["files"], found["commits"], strict=True)
    ]
    for group, facts in found["differ"].items():
        lines += [f"different {group}: {name}: {_shown(old)} -> {_shown(new)}" for name, (old, new) in facts.items()]
    if found["differ"]["machine"]:
        lines.append("rates of different machines don't compare, so none is marked; ratios do")
    if found["differ"]["settings"]:
        lines.append("what was measured is not the same: neither rates nor ratios compare as they are")
    lines += [f"failed in {age}: {stage}: {e}" for age in ("old", "new") for stage, e in found["failed"][age].items()]
    if found["rows"]:
        cells = [["bench", "kind", "figure", "old", "new", "new/old", ""]]
        cells += [
            [
                row["bench"],
                row["kind"],
                row["name"],
                *("-" if row[key] is None else f"{row[key]:,.3f}" for key in ("old", "new", "new_over_old")),
                "fell" if row["fell"] and not row["less_is_better"] else "rose, less is better" if row["fell"] else "",
            ]
            for row in found["rows"]
        ]
        lines.append(aligned(cells, numbers=frozenset({3, 4, 5})))
    return "\n".join(lines)


def check(found: Figures) -> None:
    """Return if nothing got worse.

    Raises:
        WildRewardError: something did, by more than the tolerance.
    """
    if found["fell"]:
        raise WildRewardError(
            f"worse than in {found['files'][0]!r} by more than {found['tolerance']:g} of it: {', '.join(found['fell'])}"
        )


def fell(old: float, new: float, tolerance: float, *, less_is_better: bool) -> bool:
    """Whether a figure got worse by more than `tolerance` of its old value, which is not zero."""
    change = new / old - 1
    return (change if less_is_better else -change) > tolerance + _ROUNDING


def _rows(stage: str, old: BenchFile, new: BenchFile, tolerance: float, *, same_machine: bool) -> list[Figures]:
    before, after = old.figures[stage], new.figures[stage]
    known = {ratio.name: ratio for ratio in RATIOS.get(stage, ())}
    either = {**before, **after}
    ratios = [ratio.name for ratio in measured(stage, either)]
    rates = [name for name in either if name.endswith(_RATE)]
    rows = []
    for name in [*ratios, *rates]:
        first, second = (_number(file, stage, name) for file in (old, new))
        less = name in known and known[name].less_is_better
        quotient, worse = None, False
        if first is not None and second is not None and first != 0:
            quotient, worse = second / first, fell(first, second, tolerance, less_is_better=less)
        rows.append(
            {
                "bench": stage,
                "name": name,
                "kind": "ratio" if name in known else "rate",
                "old": first,
                "new": second,
                "new_over_old": quotient,
                "less_is_better": less,
                "fell": worse and (name in known or same_machine),
            }
        )
    return rows


def _number(file: BenchFile, stage: str, name: str) -> float | None:
    """A figure of a file, or None if it was not measured.

    Raises:
        UserError: it is no finite number.
    """
    value = file.figures[stage].get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{file.path!r}: {name} of {stage} is {value!r}, and a rate or ratio is a number", flag=_FLAG)
    return float(value)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [old.get(name), new.get(name)] for name in sorted(names) if old.get(name) != new.get(name)}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not given" if value is None else str(value)
