"""`ray job submit --working-dir . -- python jobs/run_all.py --config …`: the same flags as `wildreward run-all`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("run-all", sys.argv[1:]))
