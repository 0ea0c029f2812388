"""One module a stage: Ray glue between the pure packages and storage."""
