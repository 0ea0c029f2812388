"""What README.md and docs/ point at and tell a reader to type: files, headings, commands and their flags."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from wildreward_ray.cli import COMMANDS, parse
from wildreward_ray.core.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Blocks may stand within list items.
_FENCE = re.compile(r"^(?P<indent>[ ]*)```[^\n]*\n(?P<body>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"")
_SPAN = re.compile(r"`([^`\n]+)`")
# A path from the root of the repository; `s3://bucket/configs/x.yaml` and `https://…/docs/…` are none.
_PATH = re.compile(r"(?<![\w/.:-])(?:configs|jobs|deploy|scripts|examples|docs)/[\w*.{},/-]*[\w*}]")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")


def blocks(page: str) -> list[str]:
    """Contents of fenced blocks."""
    return [found["body"] for found in _FENCE.finditer(page)]


def targets(page: str) -> list[str]:
    """Relative targets of links and pictures; fenced blocks have none."""
    found = [a or b for a, b in _LINK.findall(_FENCE.sub("", page))]
    return [t for t in found if not re.match(r"[a-z]+:", t)]


def slugs(page: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+?)\s*$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def paths(page: str) -> list[str]:
    """Paths of the repository in code spans and fenced blocks."""
    code = [*blocks(page), *_SPAN.findall(_FENCE.sub("", page))]
    return [p for text in code for p in _PATH.findall(text)]


def exists(path: str) -> bool:
    """Whether a path, or every path that its braces stand for, matches a file of the repository."""
    braces = re.search(r"\{([^{}]*)\}", path)
    if braces:
        return all(exists(path[: braces.start()] + o + path[braces.end() :]) for o in braces[1].split(","))
    return any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """(stage, flags) of each `wildreward STAGE …` and `python jobs/STAGE.py …` in fenced blocks."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.search(r"\bwildreward |\bjobs/\w+\.py", line):
                continue
            words = shlex.split(line, comments=True)
            while words and _ASSIGNMENT.match(words[0]):
                words = words[1:]
            if words and Path(words[0]).name == "wildreward":
                yield from _of_wildreward(words[1:])
            job = next((i for i, word in enumerate(words) if re.fullmatch(r"jobs/\w+\.py", word)), None)
            if job is not None:
                yield Path(words[job]).stem.replace("_", "-"), words[job + 1 :]


def _of_wildreward(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    if words[:1] == ["COMMAND"]:  # the placeholder of "wildreward COMMAND --help"
        return
    yield words[0], words[1:]


def check(stage: str, flags: list[str], *, whole: bool = True) -> None:
    """Parse a command's flags as the command does.

    Args:
        whole: what a stage can't do without must be there; not so where `…` stands for a configuration.

    Raises:
        UserError: an unknown stage or flag; of a whole command also a value that breaks a rule, or none where one is needed.
    """
    if stage not in COMMANDS:
        raise UserError(f"no stage {stage!r}")
    if "--help" in flags:
        return
    elided = [i for i, word in enumerate(flags) if word == "--config" and flags[i + 1] == "…"]
    given = [word for i, word in enumerate(flags) if not any(i in (at, at + 1) for at in elided)]
    module, _, name = COMMANDS[stage].config.partition(":")
    try:
        parse(stage, getattr(importlib.import_module(module), name), given)
    except UserError as e:
        if (whole and not elided) or re.match("unknown flag|no stage", e.problem):
            raise


COMMAND_LINES = [(p.name, stage, flags) for p in PAGES for stage, flags in commands(p.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    dead = []
    for target in targets(text):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in slugs(file.read_text(encoding="utf-8"))):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    assert [p for p in paths(page.read_text(encoding="utf-8")) if not exists(p)] == []


@pytest.mark.parametrize(
    ("page", "stage", "flags"), COMMAND_LINES, ids=[f"{p}-{s}-{i}" for i, (p, s, _) in enumerate(COMMAND_LINES)]
)
def test_every_command_line_of_a_page_parses(
    page: str, stage: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    check(stage, flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_flag_of_a_command_within_a_sentence_exists(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wrong = []
    for span in _SPAN.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        for stage, flags in commands(f"```\n{span}\n```"):
            try:
                check(stage, flags, whole=False)
            except UserError as e:
                wrong.append(f"{span}: {e}")
    assert not wrong


def test_a_page_that_is_wrong_is_found_out() -> None:
    page = (
        "# One page\n[a](docs/none.md), [b](#one-page), [c](https://x.org/docs/y.md) and `configs/none.yaml`, `s3://b/configs/x`\n"
        "```\nRAY_ADDRESS=auto wildreward train --dataset A \\\n    --output B --epoch 3   # a remark\n"
        "```\n1. First:\n   ```\n   ray job submit --working-dir . -- python jobs/online_dpo.py --config … --polcy X\n   ```\n"
    )
    assert targets(page) == ["docs/none.md", "#one-page"]
    assert slugs(page) == {"one-page"}
    assert [p for p in paths(page) if not exists(p)] == ["configs/none.yaml"]
    found = list(commands(page))
    assert [stage for stage, _ in found] == ["train", "online-dpo"]
    for stage, flags in found:
        with pytest.raises(UserError, match="unknown flag"):
            check(stage, flags)


def test_there_are_commands_to_check_on_every_page_that_shows_how_to_run_a_stage() -> None:
    seen = {page for page, _, _ in COMMAND_LINES}
    assert {"README.md", "cluster.md", "online_dpo.md", "train.md"} <= seen


def test_the_picture_of_processes_has_light_and_dark_colours_no_script_and_text_of_at_least_12_pixels() -> None:
    picture = (ROOT / "docs" / "processes.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in picture
    assert "<script" not in picture
    width = re.search(r'viewBox="0 0 (\d+) \d+"', picture)
    assert width is not None
    sizes = [float(s) for s in re.findall(r"font(?:-size)?:[^;}]*?([\d.]+)px", picture)]
    assert sizes
    # Pixels of a picture that is shown 900 wide.
    assert min(sizes) * 900 / int(width[1]) >= 12
