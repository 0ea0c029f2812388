"""The ordinal reward model: targets, loss and decoding, input encoding, load and save, batching, scoring and metrics.

Plain torch and numpy: nothing here knows Ray, vLLM or Arrow. Shapes in docstrings use B rows of a batch, N rows of a
data set, k ordered levels and T tokens.
"""
