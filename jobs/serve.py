"""`ray job submit --working-dir . -- python jobs/serve.py --config …`: the same flags as `wildreward serve`."""

import sys

from wildreward_ray.cli import run_stage

if __name__ == "__main__":
    sys.exit(run_stage("serve", sys.argv[1:]))
