"""`ray job submit --working-dir . -- python jobs/experiment.py --config …`: the same flags as `wildreward experiment`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("experiment", sys.argv[1:]))
