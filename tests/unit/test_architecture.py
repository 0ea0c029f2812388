"""Which part may import which, read from the source, and what a light import must not pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "wildreward_ray"
PARTS = {"feedback", "reward", "policy", "cluster", "report"}
MAY_IMPORT = {
    "root": set[str](),
    "core": {"root"},
    **{part: {"root", "core"} for part in PARTS},
    "stages": {"root", "core", *PARTS},
    "cli": {"root", "core", "stages", *PARTS},
    "jobs": {"root", "core", "stages", "cli", *PARTS},
}
MAY_IMPORT_RAY = {"cluster", "stages", "jobs"}
CORE_PACKAGES = {"pydantic", "yaml", "jinja2"}


@dataclass(frozen=True)
class Import:
    """One import: the module's full name, and whether it runs when the importing module is loaded."""

    name: str
    on_load: bool


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[Path]:
    return sorted([*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def layer(module: str) -> str | None:
    """The part of the house a module belongs to, or None for a module of somebody else."""
    first, *rest = module.split(".")
    if first == "jobs":
        return "jobs"
    if first != PACKAGE:
        return None
    if not rest:
        return "root"
    return "cli" if rest[0] == "__main__" else rest[0]


def imports(file: Path) -> list[Import]:
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package.pop()
    return list(_walk(ast.parse(file.read_text(encoding="utf-8")), package, on_load=True))


def _walk(node: ast.AST, package: list[str], *, on_load: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, on_load) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            base = ".".join([*above, *([child.module] if child.module else [])])
            # `from wildreward_ray import stages` names a part only together with the name imported.
            for alias in child.names:
                yield Import(f"{base}.{alias.name}" if is_package(f"{base}.{alias.name}") else base, on_load)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(ast.Module(child.body, []), package, on_load=False)
            yield from _walk(ast.Module(child.orelse, []), package, on_load=on_load)
        else:
            lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _walk(child, package, on_load=on_load and not lazy)


def is_package(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.startswith((PACKAGE, "jobs")) and (path.is_dir() or path.with_suffix(".py").is_file())


FILES = source_files()


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_run_one_way(file: Path) -> None:
    own = layer(module_name(file))
    assert own in MAY_IMPORT, f"{module_name(file)} belongs to no known part"
    theirs = {(layer(i.name), i.name) for i in imports(file)}
    wrong = sorted(name for found, name in theirs if found is not None and found not in MAY_IMPORT[own] | {own})
    assert not wrong, f"{own} must not import {wrong}"


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_only_cluster_stages_and_jobs_import_ray(file: Path) -> None:
    uses_ray = any(i.name.split(".")[0] == "ray" for i in imports(file))
    assert not uses_ray or layer(module_name(file)) in MAY_IMPORT_RAY


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_vllm_is_imported_only_where_it_runs(file: Path) -> None:
    assert not [i.name for i in imports(file) if i.on_load and i.name.split(".")[0] == "vllm"]


@pytest.mark.parametrize("file", sorted((ROOT / PACKAGE / "core").rglob("*.py")), ids=module_name)
def test_core_stands_on_stdlib_pydantic_yaml_and_jinja2_alone(file: Path) -> None:
    roots = {i.name.split(".")[0] for i in imports(file)}
    assert roots <= {*sys.stdlib_module_names, *CORE_PACKAGES, PACKAGE}


def test_core_and_feedback_load_no_heavy_package() -> None:
    modules = [module_name(f) for part in ("core", "feedback") for f in sorted((ROOT / PACKAGE / part).rglob("*.py"))]
    assert f"{PACKAGE}.core.config.extract" in modules
    code = "".join(f"import {name}\n" for name in modules)
    assert loaded(code, ("torch", "ray", "vllm", "transformers", "pyarrow")) == []


def test_the_help_text_needs_neither_torch_nor_ray() -> None:
    if not (ROOT / PACKAGE / "cli.py").is_file():
        pytest.skip("there is no command line yet")
    code = (
        "import contextlib, io, sys\n"
        "sys.argv = ['wildreward', '--help']\n"
        f"from {PACKAGE}.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "assert 'extract' in shown.getvalue(), shown.getvalue()\n"
    )
    assert loaded(code, ("torch", "ray", "vllm", "transformers")) == []


def loaded(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a fresh interpreter has loaded after `code`."""
    code += f"import sys\nprint(*[name for name in {names!r} if name in sys.modules])\n"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_reader_of_imports_sees_every_form() -> None:
    """The tests above hold nothing if an import can hide from them."""
    file = ROOT / PACKAGE / "feedback" / "probe.py"
    tree = ast.parse(
        "import ray.data\n"
        "from wildreward_ray import stages\n"
        "from ..reward import model\n"
        "if TYPE_CHECKING:\n    from vllm import LLM\n"
        "try:\n    import yaml\nexcept ImportError:\n    pass\n"
        "class A:\n    def f(self):\n        import torch\n"
    )
    found = list(_walk(tree, module_name(file).split(".")[:-1], on_load=True))
    assert {(i.name, i.on_load) for i in found} == {
        ("ray.data", True),
        ("wildreward_ray.stages", True),
        ("wildreward_ray.reward.model", True),
        ("vllm", False),
        ("yaml", True),
        ("torch", False),
    }
