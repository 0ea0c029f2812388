"""The command that goes on with an unfinished run, from the settings that its `state.json` keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from wildreward_ray.core.config.base import Section, flag_of, leaves
from wildreward_ray.core.config.evaluate import EvaluateConfig
from wildreward_ray.core.config.experiment import ExperimentConfig
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.train import TrainConfig

# By kind of artefact: the command and its settings.
_COMMANDS: dict[str, tuple[str, type[Section]]] = {
    "feedback": ("extract", ExtractConfig),
    "reward_model": ("train", TrainConfig),
    "online_dpo": ("online-dpo", OnlineDpoConfig),
    "evaluation": ("evaluate", EvaluateConfig),
    "experiment": ("experiment", ExperimentConfig),
}
_POSITIONAL = {"experiment": "kind"}


def command(kind: str, settings: Mapping[str, Any], output: str) -> str | None:
    """`wildreward STAGE …` with every setting that is kept and is not the default; None where a flag can't say one of them.

    Settings that don't change what is made, such as replicas and GPUs, aren't kept: where a run was given any, they are given
    again. What online-dpo can't do without of those stands there as a word in capitals.

    Args:
        settings: `config` of the run's state.
        output: where the run stands.
    """
    stage, config = _COMMANDS[kind]
    words = ["wildreward", stage]
    defaults = _flat(_defaults(config))
    given = _flat({**settings, "output": output})
    for key, _ in leaves(config):
        if key not in given or (key in defaults and defaults[key] == given[key]):
            if key == _POSITIONAL.get(stage):
                words.append(str(defaults[key]))
            continue
        own = _words(given[key])
        if not own:
            return None  # an empty list stands in a file of settings only
        words += own if key == _POSITIONAL.get(stage) else [flag_of(key), *own]
    if kind == "online_dpo":
        words += ["--steps", "N"]
        words += [] if settings.get("reward_model") else ["--reward-url", "URL"]
    return shlex.join(words)


def _defaults(config: type[Section]) -> dict[str, Any]:
    """What a configuration holds where nothing is given, as JSON values; required settings are left out."""
    return {
        name: to_jsonable_python(field.get_default(call_default_factory=True))
        for name, field in config.model_fields.items()
        if not field.is_required()
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a tree; a mapping is named as well as what is in it, for it may be one setting's value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found[prefix + name] = value
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
    return found


def _words(value: Any) -> list[str]:
    """A setting's value as the command line takes it."""
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    if isinstance(value, str):
        return [value]
    return [json.dumps(value)]
