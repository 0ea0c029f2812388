"""`reward_config.json`: what a reward model needs besides its weights to be read correctly.

The file sits beside the weights. Whoever scores with the checkpoint reads the template, the length and the decoder from
here and from nowhere else.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wildreward_ray.core.errors import UserError
from wildreward_ray.core.scale import MAX_K, MIN_K
from wildreward_ray.reward import ordinal

REWARD_CONFIG = "reward_config.json"


class Calibration(BaseModel):
    """A correction of the logits fitted after training: logit j is read as scale_j * logit_j + shift_j.

    Attributes:
        method: `temperature`: one scale 1/T for all thresholds and no shift; `platt`: a scale and a shift for each.
        scale: k-1 positive finite factors.
        shift: k-1 finite summands, in logits.
        rows: labelled rows it was fitted on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    method: Literal["temperature", "platt"]
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(min_length=1)
    shift: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(min_length=1)
    rows: int = Field(ge=1)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Calibration:
        if len(self.scale) != len(self.shift):
            raise ValueError(f"{len(self.scale)} scales with {len(self.shift)} shifts")
        if self.method == "temperature" and (len(set(self.scale)) > 1 or any(self.shift)):
            raise ValueError("a temperature is one scale for all thresholds, without shifts")
        return self


class RewardConfig(BaseModel):
    """How inputs are built for a reward model and how its logits are read.

    Attributes:
        levels: number of ordered levels k; the model has k-1 logits.
        decoder: `cumulative`: logit j is that of P(y > j); `corn`: of P(y > j) given y > j-1. The score is 1 + the sum
            of P(y > j) with both.
        template: Jinja text with `history`, `prompt` and `response` that renders the model's input.
        max_length: longest input in tokens, special tokens included.
        score_range: lowest and highest score, (1, levels).
        calibration: correction of the logits, or None.
        lineage: where the model comes from (base, dataset, created, ...); free-form and never interpreted.
        format_version: version of this file's layout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    levels: int = Field(ge=MIN_K, le=MAX_K)
    decoder: Literal["cumulative", "corn"] = "cumulative"
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

    @model_validator(mode="after")
    def _calibration_has_every_threshold(self) -> RewardConfig:
        if self.calibration is not None and len(self.calibration.scale) != self.levels - 1:
            raise ValueError(
                f"calibration of {len(self.calibration.scale)} thresholds for {self.levels} levels: "
                f"it must have {self.levels - 1}"
            )
        return self

    def p_gt(self, logits: NDArray[np.floating], *, calibrated: bool = False) -> NDArray[np.float64]:
        """P(y > j) of logits through the decoder.

        Args:
            logits: [N, levels-1] of any float dtype.
            calibrated: correct the logits first, where the model has a calibration. Without it the reward is the one that
                any program computes that loads the checkpoint.

        Returns:
            [N, levels-1] float64 in [0, 1].

        Raises:
            RewardUnavailableError: a logit is NaN or infinite; names the rows.
        """
        if self.calibration is None or not calibrated:
            return ordinal.p_gt(logits, decoder=self.decoder)
        found = self.calibration
        return ordinal.p_gt(logits, decoder=self.decoder, scale=found.scale, shift=found.shift)

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
