"""Tell Ray every metric of the pipeline once, as a run whose gauges stay until a file appears; a job of its own.

Usage: python -m tests.ray.every_metric FILE
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray

from wildreward_ray.cluster.run_log import running
from wildreward_ray.cluster.telemetry import METRICS, telemetry_of

VALUE = 3.0
_LONGEST_S = 300.0


def main() -> None:
    over = Path(sys.argv[1])
    ray.init(logging_level="ERROR")
    with running("every_metric"):
        told = telemetry_of("every_metric")
        for metric in METRICS:
            labels = {label: f"some {label}" for label in metric.labels}
            if metric.kind == "Counter":
                told.add(metric, VALUE, **labels)
            else:
                told.set(metric, VALUE, **labels)
        deadline = time.monotonic() + _LONGEST_S
        while not over.exists() and time.monotonic() < deadline:
            time.sleep(0.2)


if __name__ == "__main__":
    main()
