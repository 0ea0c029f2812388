"""`ray job submit --working-dir . -- python jobs/train.py --config …`: the same flags as `wildreward train`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("train", sys.argv[1:]))
