"""Configuration of every stage: pydantic models that a YAML file and `--dotted.override` flags fill."""
