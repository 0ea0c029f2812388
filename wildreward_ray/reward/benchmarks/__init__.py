"""Public benchmarks of reward models: their files as items, and their metrics as their authors define them."""
