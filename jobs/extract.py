"""`ray job submit --working-dir . -- python jobs/extract.py --config …`: the same flags as `wildreward extract`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("extract", sys.argv[1:]))
