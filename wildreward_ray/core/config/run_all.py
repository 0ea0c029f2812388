"""Settings of `wildreward run-all`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from wildreward_ray.core.config.base import Section
from wildreward_ray.core.config.extract import ExtractConfig
from wildreward_ray.core.config.online_dpo import OnlineDpoConfig
from wildreward_ray.core.config.train import TrainConfig


class RunAllConfig(Section):
    """Extract, train and online DPO in a row, the reward model served for the last; each below one output."""

    output: str = Field(
        description="directory or URI; stages write to dataset/, reward_model/ and online_dpo/ below it"
    )
    extract: ExtractConfig = Field(description="settings of extract; `output` is filled in")
    train: TrainConfig = Field(description="settings of train; `dataset` and `output` are filled in")
    online_dpo: OnlineDpoConfig = Field(description="settings of online-dpo; reward, prompts and output are filled in")

    @model_validator(mode="before")
    @classmethod
    def _connect(cls, tree: Any) -> Any:
        """Stages read what the stage before wrote, unless they are told otherwise."""
        if not isinstance(tree, dict) or not isinstance(tree.get("output"), str):
            return tree
        root = tree["output"].rstrip("/")
        filled = {
            "extract": {"output": f"{root}/dataset"},
            "train": {"dataset": f"{root}/dataset", "output": f"{root}/reward_model"},
            "online_dpo": {"prompts": f"{root}/dataset/dataset/train", "output": f"{root}/online_dpo"},
        }
        given = tree.get("online_dpo") or {}
        if not (given.get("reward_url") or given.get("reward_model")):
            filled["online_dpo"]["reward_model"] = f"{root}/reward_model"
        return {**tree, **{name: {**defaults, **(tree.get(name) or {})} for name, defaults in filled.items()}}
