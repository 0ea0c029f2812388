"""Growing and shrinking, measured on one machine with the real parts: an extraction and a training run, each checked against a fixed one.

    python -m scripts.elastic --output docs/elastic.json --plot docs/elastic.svg

Extraction: a cluster without a worker node, whose autoscaler (Ray's, with its fake node provider) starts up to three and ends them when
they have had nothing to do; the dataset must be that of the same command on a fixed Ray. Training: one node, a second that is added,
and taken away after a notice; the weights must be those of a run that nobody disturbed, and every step must be in the curve once.
The judge is the demo's, the base model a tiny one with random weights: what is measured is what growing and shrinking cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, write figures and picture. What goes wrong is raised, and then nothing is written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output", required=True, type=Path, help="JSON file of what was measured")
    parser.add_argument("--plot", required=True, type=Path, help="SVG file of the picture")
    parser.add_argument("--copies", type=int, default=8, help="copies of the sample that are extracted")
    parser.add_argument("--rows", type=int, default=16000, help="rows that are trained on twice, 64 a step")
    parser.add_argument(
        "--only", choices=("extract", "train"), help="measure one, and keep what --output has of the other"
    )
    parser.add_argument(
        "--folder", type=Path, help="keep inputs, outputs and logs here; a short path, as sockets lie below it"
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="wr") as scratch:
        measured = _measure(given, given.folder or Path(scratch))
    given.output.write_text(text_of(measured), encoding="utf-8")
    if {"extract", "train"} <= measured.keys():
        from scripts.elastic_plot import write_plot

        write_plot(measured, given.plot)
    print(json.dumps({name: part.get("figures", part) for name, part in measured.items()}, indent=1))
    return 0


def _measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import ray

    from scripts import elastic_extract, elastic_train
    from tests.ray.helpers import save_tiny_policy

    kept: dict[str, Any] = {}
    if given.only and given.output.is_file():
        kept = json.loads(given.output.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"cores": elastic_extract.cores(), "python": platform.python_version(), "ray": ray.__version__}
    found: dict[str, Any] = {**kept, "machine": machine}
    if given.only in (None, "extract"):
        found["extract"] = elastic_extract.measure(folder / "e", given.copies)
    if given.only in (None, "train"):
        found["train"] = elastic_train.measure(folder / "t", save_tiny_policy(folder / "tiny"), given.rows)
    return {name: found[name] for name in ("machine", "extract", "train") if name in found}


def text_of(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a line for each figure or list, and not one for each number of a timeline."""
    parts = []
    for name, part in measured.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
        parts.append(f" {json.dumps(name)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
