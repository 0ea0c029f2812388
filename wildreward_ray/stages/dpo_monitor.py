"""What the driver sees of an online DPO run: it keeps the rows, prints a line for each, feeds trackers and raises alarms.

Alarms look for a policy that games its reward or has stopped learning:

- `length`: held-out replies became longer or shorter than at the start by more than `alarms.max_length_ratio`.
- `kl`: the KL divergence from the reference is beyond `alarms.max_kl`; `alarms.kl_action` says what becomes of the run. To
  pull harder to the reference is to RAISE beta: DPO's optimum is ref(y|x) exp(r(x, y) / beta) up to its norm (arXiv
  2305.18290, eq. 4), so the larger beta, the less a reward moves the policy. The same holds for the ipo loss.
- `second_reward`: the held-out reward rose while a second reward model, which nobody trains against, finds the replies worse
  than those of the start, with the whole 95 % interval of its win rate below one half.
- `spread`: for five steps no prompt gave a pair since the rewards or the replies no longer differ.

An alarm of a kind is told again when it is worse by more than a tenth, or when it had gone in between. Only one that stops the
run is told every time, so that a run that goes on from a checkpoint can't pass it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wildreward_ray.cluster.run_log import say
from wildreward_ray.cluster.telemetry import telemetry_of
from wildreward_ray.cluster.tracking import Trackers
from wildreward_ray.core.config.online_dpo import AlarmSection, OnlineDpoConfig
from wildreward_ray.policy.comparison import Evaluation
from wildreward_ray.policy.pairs import IDENTICAL, MARGIN, SIMILAR, TOO_FEW, UNFINISHED, UNSURE
from wildreward_ray.stages.dpo_records import evaluation_line, numbers, outcome, step_line, time_figures

Kind = Literal["length", "kl", "second_reward", "spread"]
Action = Literal["warn", "stop", "raise_beta"]

_STAGE = "online-dpo"
_WORSE = 1.1
# A number, which infinity isn't in JSON.
_WORST = sys.float_info.max
_SPREAD_STEPS = 5
# Reasons of pairing, and among them those of samples that don't differ. Other reasons are of prompts that were never scored.
_PAIRING = (TOO_FEW, UNFINISHED, IDENTICAL, SIMILAR, MARGIN, UNSURE)
_ALIKE = {MARGIN: "--pairs.min-margin", IDENTICAL: "--rollout.temperature", SIMILAR: "--pairs.max-similarity"}


@dataclass(frozen=True)
class Alarm:
    """Something to look at.

    Attributes:
        step: steps done when it was raised.
        text: the value, the limit and the flag.
        action: what the run should do about it.
    """

    step: int
    kind: Kind
    text: str
    action: Action


@dataclass(frozen=True)
class _Finding:
    """A condition that holds. `severity` is above 0, and larger the worse it is."""

    kind: Kind
    severity: float
    text: str
    action: Action = "warn"


class Monitor:
    """Keeps what happened in a run.

    Args:
        config: of the run.
        trackers: where curves go, as `train/...` at every step and `held_out/...` at every evaluation.

    Attributes:
        rows: metrics of every step, in order, each step once.
        evals: evaluations, likewise.
        alarms: those that were told.
    """

    def __init__(self, config: OnlineDpoConfig, trackers: Trackers) -> None:
        self._config, self._trackers, self._telemetry = config, trackers, telemetry_of(_STAGE)
        self.rows: list[dict[str, Any]] = []
        self.evals: list[dict[str, Any]] = []
        self.alarms: list[Alarm] = []
        self._told: dict[str, float] = {}

    def step(self, row: dict[str, Any]) -> list[Alarm]:
        """Take in the metrics of a step. One that was done before, and all that came after it, is forgotten.

        Returns:
            Alarms that are told now; of kind `spread`.
        """
        self._forget(row["step"])
        self.rows.append(row)
        say(_STAGE, step_line(self.rows, self._config.steps), event="step", **row)
        self._telemetry.dpo_step(row, self._config.steps)
        self._trackers.log(row["step"], numbers(row, "train"))
        return self._tell(row["step"], ("spread",), _spread(self.rows))

    def evaluation(self, row: dict[str, Any]) -> list[Alarm]:
        """Take in an evaluation, see `dpo_records.evaluation_row`. The first one is the start that later ones are held against.

        Returns:
            Alarms that are told now. All that hold, told or not, are put into `row["alarms"]`.
        """
        while self.evals and self.evals[-1]["step"] >= row["step"]:
            self.evals.pop()
        start = self.evals[0] if self.evals else None
        # Neither the samples, which are text of conversations, nor the alarms, which have lines of their own.
        measured = {name: row[name] for name in row if name not in ("samples", "alarms")}
        say(_STAGE, evaluation_line(row, start), event="evaluation", **measured)
        self._telemetry.dpo_held_out(row)
        self._trackers.log(row["step"], numbers(row, "held_out"))
        found = _held_out(row, start, self._config.alarms)
        row["alarms"] = [finding.text for finding in [*found, *_spread(self.rows)]]
        self.evals.append(row)
        return self._tell(row["step"], ("length", "kl", "second_reward"), found)

    def state(self) -> dict[str, Any]:
        """All there is, as JSON, to be kept with a checkpoint of the steps so far."""
        alarms = [asdict(alarm) for alarm in self.alarms]
        return {"rows": list(self.rows), "evals": list(self.evals), "alarms": alarms, "told": dict(self._told)}

    def restore(self, state: Mapping[str, Any], *, step: int | None = None) -> None:
        """Go on from a `state`.

        Args:
            step: the checkpoint's; what the state has of later steps is dropped. None: it has none.
        """
        self.rows, self.evals = list(state["rows"]), list(state["evals"])
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]
        self._told = dict(state["told"])
        if step is not None:
            self._forget(step + 1)

    def summary(
        self,
        *,
        before: Evaluation | None,
        after: Evaluation | None,
        first_pairs: Mapping[str, float | None] | None,
        stopped: str | None,
    ) -> dict[str, Any]:
        """The content of summary.json.

        Args:
            before, after: held-out replies before the first step and after the last; None where none are held out.
            first_pairs: `margin_before` and `margin_after` of the pairs of the first step that had any; None without pairs.
            stopped: why the run ended before its last step; None where it did not.
        """
        compared = None if before is None or after is None else outcome(before, after, seed=self._config.seed)
        return {
            "policy": self._config.policy,
            "steps_done": self.rows[-1]["step"] if self.rows else 0,
            "stopped": stopped,
            "eval": compared,
            "alarms": [asdict(alarm) for alarm in self.alarms],
            "first_pairs": None if first_pairs is None else dict(first_pairs),
            "time": time_figures(self.rows),
        }

    def _tell(self, step: int, kinds: Sequence[Kind], found: Sequence[_Finding]) -> list[Alarm]:
        """The alarms among what was found that are news; `kinds` are those that were looked for."""
        for gone in set(kinds) - {finding.kind for finding in found}:
            self._told.pop(gone, None)
        news = [finding for finding in found if finding.action == "stop" or self._is_news(finding)]
        alarms = [Alarm(step, finding.kind, finding.text, finding.action) for finding in news]
        self._told |= {finding.kind: finding.severity for finding in news}
        self.alarms += alarms
        for alarm in alarms:
            text = f"alarm ({alarm.kind}): {alarm.text}"
            say(_STAGE, text, event="alarm", level="warning", kind=alarm.kind, action=alarm.action, step=alarm.step)
            self._telemetry.dpo_alarm(alarm.kind)
        return alarms

    def _is_news(self, finding: _Finding) -> bool:
        told = self._told.get(finding.kind)
        return told is None or finding.severity > _WORSE * told

    def _forget(self, step: int) -> None:
        """Drop what happened at `step` and later, which is done again."""
        if not any(rows and rows[-1]["step"] >= step for rows in (self.rows, self.evals)):
            return
        self.rows = [row for row in self.rows if row["step"] < step]
        self.evals = [row for row in self.evals if row["step"] < step]
        # What was told of later steps has to be told again when it happens again.
        later = {alarm.kind for alarm in self.alarms if alarm.step >= step}
        self.alarms = [alarm for alarm in self.alarms if alarm.step < step]
        self._told = {kind: severity for kind, severity in self._told.items() if kind not in later}


def _held_out(row: Mapping[str, Any], start: Mapping[str, Any] | None, limits: AlarmSection) -> list[_Finding]:
    found = [_kl(row["kl"], limits)]
    if start is not None:
        found += [_length(row["length_mean"], start["length_mean"], limits.max_length_ratio), _second(row, start)]
    return [finding for finding in found if finding is not None]


def _kl(kl: float | None, limits: AlarmSection) -> _Finding | None:
    # Not `kl > limit`: NaN, from weights that broke, must not pass.
    if kl is None or limits.max_kl is None or kl <= limits.max_kl:
        return None
    then = {
        "warn": "",
        "stop": "; the run stops (--alarms.kl-action)",
        "raise_beta": f"; beta is raised by a factor of {limits.beta_factor:g} (--alarms.beta-factor)",
    }
    text = (
        f"the KL divergence from the reference is {kl:.3g} nats a reply on held-out prompts, the limit is {limits.max_kl:g} "
        f"(--alarms.max-kl){then[limits.kl_action]}"
    )
    return _Finding("kl", min(kl, _WORST) if kl == kl else _WORST, text, limits.kl_action)


def _length(now: float, start: float, limit: float | None) -> _Finding | None:
    shorter, longer = sorted((now, start))
    ratio = longer / shorter if shorter else _WORST
    if limit is None or longer == shorter or ratio <= limit:
        return None
    text = (
        f"held-out replies have {now:.0f} tokens on average and had {start:.0f} at the start: "
        f"{'longer' if now > start else 'shorter'} by a factor of {ratio:.2f}, the limit is {limit:g} (--alarms.max-length-ratio)"
    )
    return _Finding("length", ratio, text)


def _second(row: Mapping[str, Any], start: Mapping[str, Any]) -> _Finding | None:
    rate, high = row["second_win_rate"], row["second_win_high"]
    if rate is None or high is None or row["reward_mean"] is None or start["reward_mean"] is None:
        return None
    if high >= 0.5 or row["reward_mean"] <= start["reward_mean"]:
        return None
    text = (
        f"the held-out reward rose from {start['reward_mean']:.3f} to {row['reward_mean']:.3f}, but the second reward model "
        f"(--eval.second-reward-url) prefers the replies of the start: its win rate is {rate:.2f} "
        f"({row['second_win_low']:.2f} to {high:.2f}), the limit is 0.50; the policy may be gaming the first"
    )
    return _Finding("second_reward", 1 - rate, text)


def _spread(rows: Sequence[Mapping[str, Any]]) -> list[_Finding]:
    last = rows[-_SPREAD_STEPS:]
    if len(last) < _SPREAD_STEPS:
        return []
    skipped: Counter[str] = Counter()
    for row in last:
        reasons = Counter({reason: row["skipped"].get(reason, 0) for reason in _PAIRING})
        alike = sum(reasons[reason] for reason in _ALIKE)
        if row["pairs"] or not alike or alike < reasons.total():
            return []
        skipped += reasons
    counts = ", ".join(f"{reason} {n}" for reason, n in skipped.most_common())
    flag = _ALIKE[skipped.most_common(1)[0][0]]
    text = (
        f"rewards no longer differ: in the last {_SPREAD_STEPS} steps none of {skipped.total()} prompts gave a pair ({counts}), "
        f"the limit is {_SPREAD_STEPS} such steps in a row ({flag})"
    )
    return [_Finding("spread", 1.0, text)]
