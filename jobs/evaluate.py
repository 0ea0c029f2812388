"""`ray job submit --working-dir . -- python jobs/evaluate.py --config …`: the same flags as `wildreward evaluate`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("evaluate", sys.argv[1:]))
