"""One module a stage: Ray glue between the pure packages and storage."""

# Every process that runs a stage's functions imports this, and with it the way their errors travel back to the driver.
from wildreward_ray.cluster import session as session
