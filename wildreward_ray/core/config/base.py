"""How a stage's configuration is read: YAML file first, `--dotted.override` flags over it, unknown keys are errors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from wildreward_ray.core.errors import UserError, nearest


class Section(BaseModel):
    """A group of settings. Every field carries a description, which is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def load(
        cls, file: str | None = None, overrides: Mapping[str, Any] | None = None, *, content: bytes | None = None
    ) -> Self:
        """Build the configuration from a YAML file and dotted overrides, the overrides winning.

        Args:
            file: path of a YAML mapping, or None.
            overrides: dotted key -> value, e.g. `{"judge.model": "demo:smollm2"}`. Strings are read as YAML scalars where
                the field is not a string.
            content: what `file` holds where it was read already; `file` may then be a URI, and serves messages only.

        Raises:
            UserError: an unreadable file, an unknown key (names the nearest one), or a value that breaks a rule.
        """
        tree = _read_yaml(file, content) if file else {}
        known = dict(leaves(cls))
        for key, value in (overrides or {}).items():
            if key not in known:
                raise UserError(f"unknown setting {key!r}: {nearest(key, known)}", flag=flag_of(key))
            _put(tree, key.split("."), _scalar(key, known[key], value))
        try:
            return cls.model_validate(tree)
        except ValidationError as e:
            raise _as_user_error(cls, e, file) from e


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every setting that isn't itself a section, in order of declaration."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield from leaves(section, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The `Section` class of a nested field, or None."""
    for option in _options(field):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def flag_of(key: str) -> str:
    """The command-line flag of a dotted setting."""
    return "--" + key.replace("_", "-")


def _scalar(key: str, field: FieldInfo, value: Any) -> Any:
    """An override's value: text stays text where the field holds text, else it is read as YAML."""
    if not isinstance(value, str) or any(o is str or get_origin(o) is Literal for o in _options(field)):
        return value
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise UserError(f"{key} = {_short(value)}: not valid YAML", flag=flag_of(key)) from e


def _options(field: FieldInfo) -> tuple[Any, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)


def _read_yaml(file: str, content: bytes | None) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load((Path(file).read_bytes() if content is None else content).decode("utf-8"))
    except OSError as e:
        raise UserError(f"can't read {file!r}: {e.strerror}", flag="--config") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{file!r} is not valid YAML: {' '.join(str(e).split())}", flag="--config") from e
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{file!r} holds a {type(tree).__name__}: a configuration is a mapping", flag="--config")
    return tree


def number_or_range(value: Any, what: str) -> Any:
    """For a validator before pydantic's own: `2` is (2, 2) and `2..8` is (2, 8).

    Raises:
        ValueError: a text that is neither.
    """
    if isinstance(value, int):
        return value, value
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", value)
        if found is None:
            raise ValueError(f"{what} are a number or a range such as 2..8")
        return int(found[1]), int(found[2] or found[1])
    if isinstance(value, (tuple, list)) and len(value) == 1:
        return number_or_range(value[0], what)
    return value


def ordered_range(value: tuple[int, int], what: str) -> tuple[int, int]:
    """`value` where it has at least one and ends no lower than it begins.

    Raises:
        ValueError: it hasn't.
    """
    if not 1 <= value[0] <= value[1]:
        raise ValueError(f"at least one {what} is needed, and no fewer at the most than at the least")
    return value


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise UserError(f"{'.'.join(path)!r} can't be set: {part!r} holds {below!r}, which is not a mapping")
        tree = below
    tree[path[-1]] = value


def _as_user_error(cls: type[BaseModel], error: ValidationError, file: str | None) -> UserError:
    found = error.errors(include_url=False)
    # A misspelt key is often why another one is missing, so it is named first.
    first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    source = f" in {file!r}" if file else ""
    if first["type"] == "extra_forbidden":
        known = {name for name, _ in leaves(cls)} | set(cls.model_fields)
        return UserError(f"unknown setting {dotted!r}{source}: {nearest(dotted, known)}", flag="--config")
    if first["type"] == "missing":
        return UserError(f"{dotted!r} is required{source}", flag=flag_of(dotted))
    rule = first["msg"].removeprefix("Value error, ")
    flag = flag_of(dotted) if dotted else None
    return UserError(f"{dotted or 'configuration'} = {_short(first.get('input'))}: {rule}", flag=flag)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
