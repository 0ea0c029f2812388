"""`ray job submit --working-dir . -- python jobs/score.py --config …`: the same flags as `wildreward score`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("score", sys.argv[1:]))
