"""Learning a policy from rewards: preference pairs out of scored rollouts, and the DPO losses on them.

Plain torch: nothing here knows Ray, vLLM or where the rewards come from.
"""
