"""Files for `serve deploy`: Ray Serve takes them, and what they name and set exists."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.stages.serve import APP, ENGINE_APP

FILES = sorted((Path(__file__).parents[2] / "configs").glob("*.applications.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_serve_takes_the_file_and_both_applications_are_given_the_same_valid_settings(file: Path) -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    engine, api = deployed.applications
    assert (engine.name, engine.route_prefix) == (ENGINE_APP, None)
    assert (api.name, api.route_prefix) == (APP, "/")
    assert engine.args == api.args
    config = ServeConfig.load(None, api.args)
    # Serve's own options decide these; in the settings they would be read by nobody.
    assert not {"host", "port"} & set(api.args)
    # What the whole network can reach is not open to all of it.
    assert deployed.http_options.host == "127.0.0.1" or config.auth_token_env


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_import_path_leads_to_a_function(file: Path) -> None:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    for application in deployed.applications:
        module, name = application.import_path.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_there_is_such_a_file() -> None:
    assert FILES
