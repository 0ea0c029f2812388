"""The funnel accounts for every row, and the manifest can't be written while it doesn't."""

from __future__ import annotations

import json

import pytest

from wildreward_ray import __version__
from wildreward_ray.core.manifest import FunnelStep, Manifest, versions


def manifest(*steps: FunnelStep) -> Manifest:
    return Manifest(kind="feedback", inputs=["in"], config={"a": 1}, funnel=list(steps), seconds=0.5)


def test_funnel_that_adds_up_is_written_as_it_is() -> None:
    step = FunnelStep(name="read", unit="records", rows_in=5, rows_out=2, dropped={"a": 1, "b": 2}, notes={"odd": 9})
    written = json.loads(manifest(step).checked_json())
    assert written["funnel"] == [step.model_dump()]
    assert written["inputs"] == ["in"]
    assert written["config"] == {"a": 1}


@pytest.mark.parametrize("rows_out", [1, 3])
def test_funnel_that_loses_or_invents_a_row_is_never_written(rows_out: int) -> None:
    whole = FunnelStep(name="read", unit="records", rows_in=2, rows_out=2)
    leaky = FunnelStep(name="quality", unit="interactions", rows_in=5, rows_out=rows_out, dropped={"a": 3})
    with pytest.raises(AssertionError, match=r"'quality' loses rows: 5 in"):
        manifest(whole, leaky).checked_json()


def test_what_a_stage_adds_to_the_manifest_is_kept() -> None:
    extended = Manifest.model_validate({**manifest().model_dump(), "labels": {"level": {"1": 2}}})
    assert json.loads(extended.checked_json())["labels"] == {"level": {"1": 2}}


def test_versions_name_this_package_and_the_engines_that_are_there() -> None:
    found = versions()
    assert found["wildreward_ray"] == __version__
    assert {"python", "torch", "ray", "pyarrow"} <= found.keys()
