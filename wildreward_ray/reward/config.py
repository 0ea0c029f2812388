"""`reward_config.json`: what a reward model needs besides its weights to be read correctly.

The file sits beside the weights. Whoever scores with the checkpoint reads the template, the length and the decoder from
here and from nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import MAX_K, MIN_K

REWARD_CONFIG = "reward_config.json"


class Calibration(BaseModel):
    """A correction fitted after training, one for the whole model."""

    model_config = ConfigDict(extra="forbid")
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False, description="divides every logit")


class RewardConfig(BaseModel):
    """How inputs are built for a reward model and how its logits are read.

    Attributes:
        levels: number of ordered levels k; the model has k-1 logits.
        decoder: `cumulative`: logit j is that of P(y > j), the score is 1 + sum of p_j.
        template: Jinja text with `history`, `prompt` and `response` that renders the model's input.
        max_length: longest input in tokens, special tokens included.
        score_range: lowest and highest score, (1, levels).
        calibration: correction of the logits, or None.
        lineage: where the model comes from (base, dataset, created, ...); free-form and never interpreted.
        format_version: version of this file's layout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    levels: int = Field(ge=MIN_K, le=MAX_K)
    decoder: Literal["cumulative"] = "cumulative"
    template: str
    max_length: int = Field(ge=8)
    score_range: tuple[float, float] = Field(default_factory=lambda data: (1.0, float(data["levels"])))
    calibration: Calibration | None = None
    lineage: dict[str, Any] = Field(default_factory=dict)
    format_version: Literal[1] = 1

    @model_validator(mode="after")
    def _range_is_that_of_the_levels(self) -> RewardConfig:
        if self.score_range != (1.0, float(self.levels)):
            raise ValueError(f"score_range {self.score_range} of {self.levels} levels must be (1, {self.levels})")
        return self

    @property
    def temperature(self) -> float:
        """What `ordinal.sigmoid_p_gt` divides the logits by: the calibrated temperature, or 1."""
        calibrated = self.calibration.temperature if self.calibration else None
        return 1.0 if calibrated is None else calibrated

    def save(self, directory: str | Path) -> Path:
        """Write `reward_config.json` into a local `directory` (made if missing), whole or not at all."""
        target = Path(directory) / REWARD_CONFIG
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".json.partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(partial, target)
        return target

    @classmethod
    def load(cls, directory: str | Path) -> RewardConfig:
        """Read `reward_config.json` of a local checkpoint directory.

        Raises:
            UserError: the file is missing, is not JSON, or holds a decoder, version or value this version can't read.
        """
        path = Path(directory) / REWARD_CONFIG
        if not path.is_file():
            raise UserError(f"{str(directory)!r} has no {REWARD_CONFIG}", flag="--model")
        return cls.load_file(path)

    @classmethod
    def load_if_present(cls, directory: str | Path) -> RewardConfig | None:
        """Like `load`, but None where the directory has no `reward_config.json`."""
        return cls.load(directory) if (Path(directory) / REWARD_CONFIG).is_file() else None

    @classmethod
    def load_file(cls, path: str | Path) -> RewardConfig:
        """Read one `reward_config.json`. Raises `UserError` as `load` does."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as e:
            raise UserError(f"{str(path)!r} can't be read: {e.strerror or e}", flag="--model") from e
        except ValidationError as e:
            first = e.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "file"
            raise UserError(
                f"{str(path)!r} is not a usable reward config: {where}: {first['msg']} (found {first['input']!r:.80})",
                flag="--model",
            ) from e
