"""WildReward on Ray: chat logs in, ordinal reward model and better policy out."""

__version__ = "0.1.0"
