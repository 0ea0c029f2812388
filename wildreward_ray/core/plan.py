"""What a command would do, as data and as text: stages in order, what they read and write, their actors, and what it adds up to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from wildreward_ray.core.model_memory import GB, Memory

Edge = Literal["least", "most"]


@dataclass(frozen=True)
class Actors:
    """Actors of one kind.

    Attributes:
        least, most: how many; Ray adds and removes what is between.
        cpus, gpus: Ray's, of each.
        gpus_where_any: of each on a cluster that has GPUs, and none on one that has none; `gpus` is 0 then.
        memory_gib: main memory of each that Ray reserves, in GiB; 0: none is asked for.
        labels: of the nodes that they may stand on.
        flag: what changes it.
        gpu_memory: of each GPU that one holds, worked out; None where that can't be said.
        note: why it can't, or what else is to be known.
    """

    kind: str
    least: int
    most: int
    cpus: float
    gpus: float
    flag: str
    gpus_where_any: float = 0.0
    memory_gib: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_memory: Memory | None = None
    note: str = ""


@dataclass(frozen=True)
class Need:
    """CPUs, GPUs and reserved GiB of main memory at one time; `gpus_where_any` are not among `gpus`."""

    cpus: float
    gpus: float
    gpus_where_any: float
    memory_gib: float


@dataclass(frozen=True)
class Phase:
    """Actors that run at the same time; `task_cpus` are those of the largest plain tasks beside them."""

    name: str
    actors: tuple[Actors, ...]
    task_cpus: float = 0.0

    def need(self, edge: Edge) -> Need:
        """What all of them hold, the fewest or the most of them."""

        def total(amount: Callable[[Actors], float]) -> float:
            return sum((a.least if edge == "least" else a.most) * amount(a) for a in self.actors)

        return Need(
            total(lambda a: a.cpus) + self.task_cpus,
            total(lambda a: a.gpus),
            total(lambda a: a.gpus_where_any),
            total(lambda a: a.memory_gib),
        )


@dataclass(frozen=True)
class Input:
    """What is read.

    Attributes:
        files, size: how many and their bytes; None where that was not looked at.
        rows: in the footers of Parquet files; None where other files are among them, or they were not looked at.
        state: `read`: looked at; `not read`: it is elsewhere; `not there`: nothing stands there yet.
    """

    uri: str
    state: Literal["read", "not read", "not there"] = "not read"
    files: int | None = None
    size: int | None = None
    rows: int | None = None


@dataclass(frozen=True)
class Estimate:
    """A figure that follows from the settings; `value` None: it can't be had without reading the inputs. `how` says from what."""

    what: str
    value: int | None
    how: str


@dataclass(frozen=True)
class StagePlan:
    """One stage: its phases run one after another."""

    stage: str
    reads: tuple[Input, ...]
    writes: tuple[str, ...]
    phases: tuple[Phase, ...]
    estimates: tuple[Estimate, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a command would do; its stages run one after another."""

    command: str
    stages: tuple[StagePlan, ...]

    def need(self, edge: Edge) -> Need:
        """The largest amount of each resource that is held at a time, with the fewest or the most actors."""
        needs = [asdict(phase.need(edge)) for stage in self.stages for phase in stage.phases]
        names = ("cpus", "gpus", "gpus_where_any", "memory_gib")
        return Need(**{name: max((need[name] for need in needs), default=0.0) for name in names})

    def as_json(self) -> str:
        """The plan for programs: the fields of these classes, sums as `least` and `most`, memory in bytes."""
        tree = asdict(self)
        for stage, found in zip(self.stages, tree["stages"], strict=True):
            for phase, entry in zip(stage.phases, found["phases"], strict=True):
                entry |= {"least": asdict(phase.need("least")), "most": asdict(phase.need("most"))}
                for actors, group in zip(phase.actors, entry["actors"], strict=True):
                    group["gpu_memory"] = _memory_tree(actors.gpu_memory)
        tree |= {"least": asdict(self.need("least")), "most": asdict(self.need("most"))}
        return json.dumps(tree, ensure_ascii=False, indent=2)

    def as_text(self) -> str:
        """The plan for people."""
        order = ", one after another" if len(self.stages) > 1 else ""
        lines = [f"plan of wildreward {self.command}: {count(len(self.stages), 'stage')}{order}; nothing is started"]
        for number, stage in enumerate(self.stages, 1):
            lines += ["", f"{number}. {stage.stage}", *_stage_lines(stage)]
        lines += ["", f"at the least  {_need(self.need('least'))}", f"at the most   {_need(self.need('most'))}"]
        return "\n".join(lines)


def count(n: int, thing: str) -> str:
    """`1 actor`, `2 actors`."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def amount(value: float, thing: str) -> str:
    """`0.5 CPUs`, `1 CPU`."""
    return f"{value:g} {thing}" if value == 1 else f"{value:g} {thing}s"


def gigabytes(size: int) -> str:
    """Bytes as GB (10^9), or as MB or kB where they are few."""
    for unit, name in ((GB, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1000:,.1f} kB"


def _memory_tree(memory: Memory | None) -> dict[str, Any] | None:
    if memory is None:
        return None
    return {"parts": dict(memory.parts), "loading": memory.loading, "total": memory.total}


def _stage_lines(stage: StagePlan) -> list[str]:
    lines = [f"   reads   {_input(given)}" for given in stage.reads]
    lines += [f"   writes  {uri}" for uri in stage.writes]
    for phase in stage.phases:
        tasks = f", tasks beside them {amount(phase.task_cpus, 'CPU')}" if phase.task_cpus else ""
        lines.append(f"   phase   {phase.name}: {_range(phase)}{tasks}")
        for actors in phase.actors:
            lines += _actor_lines(actors)
    for estimate in stage.estimates:
        value = "not known" if estimate.value is None else f"{estimate.value:,}"
        lines.append(f"   {estimate.what}: {value} ({estimate.how})")
    return [*lines, *(f"   {note}" for note in stage.notes)]


def _range(phase: Phase) -> str:
    least, most = phase.need("least"), phase.need("most")
    return _need(least) if least == most else f"{_need(least)}, up to {_need(most)}"


def _actor_lines(actors: Actors) -> list[str]:
    number = f"{actors.least}" if actors.least == actors.most else f"{actors.least}..{actors.most}"
    holds = _need(Need(actors.cpus, actors.gpus, actors.gpus_where_any, actors.memory_gib))
    where = f", on nodes with {_labels(actors.labels)}" if actors.labels else ""
    lines = [f"     {number} x {actors.kind}, each {holds}{where} ({actors.flag})"]
    if actors.gpu_memory is not None:
        memory = actors.gpu_memory
        parts = ", ".join(f"{what} {gigabytes(size)}" for what, size in memory.parts)
        loading = f"; while it loads {gigabytes(memory.loading)}" if memory.loading else ""
        lines.append(f"       GPU memory, worked out: {gigabytes(memory.total)} ({parts}{loading})")
    return [*lines, f"       {actors.note}"] if actors.note else lines


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _input(given: Input) -> str:
    if given.state == "not there":
        return f"{given.uri} (not there yet)"
    if given.size is None or given.files is None:
        return f"{given.uri} (not read)"
    rows = f", {count(given.rows, 'row')}" if given.rows is not None else ""
    return f"{given.uri} ({count(given.files, 'file')}, {gigabytes(given.size)}{rows})"


def _need(need: Need) -> str:
    gpus = amount(need.gpus, "GPU")
    if need.gpus_where_any:
        gpus += f" ({need.gpus_where_any:g} more where there are GPUs)" if need.gpus else ""
        gpus = gpus if need.gpus else f"0 GPUs ({need.gpus_where_any:g} where there are GPUs)"
    parts: Sequence[str] = [amount(need.cpus, "CPU"), gpus]
    return ", ".join([*parts, *([f"{need.memory_gib:g} GiB"] if need.memory_gib else [])])
