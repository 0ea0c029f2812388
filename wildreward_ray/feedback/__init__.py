"""From conversations to labelled feedback, as pure functions: no Ray, no torch, no files."""
