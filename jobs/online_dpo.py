"""`ray job submit --working-dir . -- python jobs/online_dpo.py --config …`: the same flags as `wildreward online-dpo`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("online-dpo", sys.argv[1:]))
