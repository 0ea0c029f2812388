"""Settings: unknown keys are errors, flags win over files, every field is described and read by somebody."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import wildreward_ray.core.config as config_package
from wildreward_ray.core.config.base import Section, leaves, section_of
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.errors import UserError

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wildreward_ray"
# What makes a configuration valid where its fields alone don't tell.
ALSO_NEEDED: dict[str, dict[str, Any]] = {
    "online_dpo": {"reward_url": "http://127.0.0.1:8000"},
    "evaluate": {"scores": "scores.jsonl", "benchmark": "pairs"},
}


def sections() -> list[type[Section]]:
    """Every settings class that is defined below core/config."""
    found: dict[str, type[Section]] = {}
    for info in pkgutil.iter_modules(config_package.__path__):
        module = importlib.import_module(f"{config_package.__name__}.{info.name}")
        for name, value in inspect.getmembers(module, inspect.isclass):
            if issubclass(value, Section) and value is not Section:
                found[name] = value
    return list(found.values())


def stage_of(model: type[BaseModel]) -> str:
    """`OnlineDpoConfig` -> `online_dpo`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", model.__name__.removesuffix("Config")).lower()


SECTIONS = sections()
CONFIGS = [model for model in SECTIONS if model.__name__.endswith("Config")]


def minimal(model: type[Section]) -> dict[str, Any]:
    """The least that a configuration has to be given."""
    required = {
        name: ["x"] if str(field.annotation).startswith("tuple") else "x"
        for name, field in leaves(model)
        if field.is_required()
    }
    return {**required, **ALSO_NEEDED.get(stage_of(model), {})}


def named(models: list[type[Section]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", models, ids=[m.__name__ for m in models])


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` -> `{"a": {"b": 1}}`."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        below = tree
        for part in path:
            below = below.setdefault(part, {})
        below[last] = value
    return tree


def write_yaml(folder: Path, tree: object) -> str:
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(file)


def test_the_stages_of_the_design_have_settings() -> None:
    assert {stage_of(m) for m in CONFIGS} >= {
        "extract",
        "train",
        "serve",
        "score",
        "online_dpo",
        "run_all",
        "demo",
        "bench",
    }


@named(CONFIGS)
def test_defaults_are_valid(model: type[Section]) -> None:
    assert isinstance(model.load(None, minimal(model)), model)


@named(SECTIONS)
def test_every_setting_has_a_help_text(model: type[Section]) -> None:
    assert not [name for name, field in leaves(model) if not (field.description or "").strip()]
    assert model.__doc__


@named(CONFIGS)
def test_unknown_override_names_the_nearest_setting(model: type[Section]) -> None:
    for name, _ in leaves(model):
        with pytest.raises(UserError, match=re.escape(f"unknown setting '{name}x': did you mean")) as caught:
            model.load(None, {**minimal(model), f"{name}x": 1})
        assert repr(name) in str(caught.value)


@named(CONFIGS)
def test_unknown_yaml_key_names_the_nearest_setting_at_every_depth(model: type[Section], tmp_path: Path) -> None:
    for name, _ in leaves(model):
        file = write_yaml(tmp_path, nested({**minimal(model), f"{name}x": 1}))
        with pytest.raises(UserError, match=re.escape(f"unknown setting '{name}x'")) as caught:
            model.load(file)
        assert f"did you mean {name!r}" in str(caught.value)
        assert file in str(caught.value)


def test_override_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = write_yaml(
        tmp_path, {"input": ["a"], "output": "o", "levels": 3, "judge": {"batch_size": 7, "engine": {"block_size": 16}}}
    )
    loaded = ExtractConfig.load(file, {"judge.batch_size": 9, "output": "p"})
    assert (loaded.output, loaded.levels) == ("p", 3)
    assert (loaded.judge.batch_size, loaded.judge.engine.block_size) == (9, 16)
    untouched = ExtractConfig.load(None, minimal(ExtractConfig))
    assert loaded.judge.engine.max_model_len == untouched.judge.engine.max_model_len


def test_override_text_is_read_as_the_field_needs_it() -> None:
    given = {"limit": "7", "hindsight.replicas": "[1, 3]", "overwrite": "true", "judge.engine.cpu_threads": "null"}
    loaded = ExtractConfig.load(None, {**minimal(ExtractConfig), **given, "judge.model": "123", "split.salt": "null"})
    assert (loaded.limit, loaded.hindsight.replicas, loaded.overwrite) == (7, (1, 3), True)
    assert loaded.judge.engine.cpu_threads is None
    assert (loaded.judge.model, loaded.split.salt) == ("123", "null")


def test_broken_rule_names_value_rule_and_flag() -> None:
    with pytest.raises(UserError) as caught:
        ExtractConfig.load(None, {**minimal(ExtractConfig), "hindsight.threshold": 3})
    assert caught.value.flag == "--hindsight.threshold"
    assert "3" in str(caught.value)
    assert "less than or equal to 1" in str(caught.value)
    with pytest.raises(UserError, match="6 levels: the judge's five levels fold into"):
        ExtractConfig.load(None, {**minimal(ExtractConfig), "levels": 6})
    with pytest.raises(UserError, match="'emial' is no filter; known: language"):
        ExtractConfig.load(None, {**minimal(ExtractConfig), "quality.rules": "[emial]"})
    with pytest.raises(UserError, match="not valid YAML") as caught:
        ExtractConfig.load(None, {**minimal(ExtractConfig), "limit": "[1,"})
    assert caught.value.flag == "--limit"


def test_missing_required_setting_names_its_flag() -> None:
    with pytest.raises(UserError, match="'output' is required") as caught:
        ExtractConfig.load(None, {"input": ["a"]})
    assert caught.value.flag == "--output"


@pytest.mark.parametrize("content", [b"a: [1", b"- 1\n", b"judge: 3\ninput: [a]\noutput: o\n", b"\xff\xfe\x00"])
def test_unusable_file_is_a_user_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError):
        ExtractConfig.load(str(file))


def test_absent_file_is_a_user_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml.*--config"):
        ExtractConfig.load(str(tmp_path / "absent.yaml"))


def test_override_below_a_value_that_is_no_mapping_is_a_user_error(tmp_path: Path) -> None:
    file = write_yaml(tmp_path, {**minimal(ExtractConfig), "judge": "big"})
    with pytest.raises(UserError, match=r"judge\.model.*'big'"):
        ExtractConfig.load(file, {"judge.model": "x"})


@named(CONFIGS)
def test_every_setting_is_read_by_the_program(model: type[Section]) -> None:
    dead = [name for name in field_paths(model) if name.split(".")[-1] not in attributes_read()]
    assert not dead, f"nothing reads {dead}"


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, sections themselves included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = section_of(field)
        if section is not None:
            yield from field_paths(section, f"{prefix}{name}.")


@cache
def attributes_read() -> frozenset[str]:
    """Names that stand behind a dot, and are read, anywhere in the package but in the settings themselves."""
    files = [f for f in PACKAGE.rglob("*.py") if PACKAGE / "core" / "config" not in f.parents]
    return frozenset(
        node.attr
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    )


def shipped() -> list[Path]:
    """Settings of stages. Files for `serve deploy` are Ray Serve's: see test_serve_applications."""
    files = sorted((ROOT / "configs").rglob("*.y*ml"))
    return [file for file in files if not file.name.endswith(".applications.yaml")]


@pytest.mark.parametrize("file", shipped(), ids=lambda f: str(f.relative_to(ROOT / "configs")))
def test_every_shipped_file_is_valid_for_the_stage_it_is_named_after(file: Path) -> None:
    stage = re.split(r"[.-]", file.name)[0]
    by_stage = {stage_of(m): m for m in CONFIGS}
    assert stage in by_stage, f"{file.name} begins with no stage's name"
    by_stage[stage].load(str(file))
