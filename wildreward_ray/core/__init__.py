"""Facts shared by every stage: errors, the ordinal scale, records, configuration, the reward-input template, wire types.

Nothing here imports torch, Ray, pyarrow or transformers, so that the command line and any client can.
"""
