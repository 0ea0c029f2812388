"""Sections of curves of an online DPO run: the policy on held-out prompts, and its training step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wildreward_ray.report.curves import averaged
from wildreward_ray.report.dpo_charts import Line, Mark, line, line_chart
from wildreward_ray.report.markup import Child, Html, el
from wildreward_ray.report.page import figure, grid, not_run, note, section
from wildreward_ray.report.values import decimal, number

Rows = Sequence[Mapping[str, Any]]

# A limit farther off than this many times the largest value would press the line flat.
_FAR = 4.0


def held_out_section(evals: Rows, limit: float | None, table_of_evals: Html | None) -> Html:
    """Section 1: the policy on prompts it isn't trained on.

    Args:
        evals: rows of `evals.jsonl`.
        limit: largest KL divergence the run allows, in nats a reply.
        table_of_evals: the same as numbers.
    """
    title = "1. Held-out prompts"
    if not evals:
        return section("held-out", title, not_run("Evaluation on held-out prompts"))
    kl = line("held-out replies", evals, "kl")
    mark, far = _limit(kl, limit)
    second = line("reward", evals, "second_reward_mean")
    wins = [line("training reward", evals, "win_rate", band=("win_low", "win_high"))]
    if any(number(row.get("second_win_rate")) is not None for row in evals):
        wins.append(line("second reward model", evals, "second_win_rate", band=("second_win_low", "second_win_high")))
    return section(
        "held-out",
        title,
        note(
            "The same prompts are answered again at every evaluation, and are never trained on. Bands and brackets are 95 % "
            "intervals over prompts: they tell how much hangs on the choice of prompts, not what another run would give."
        ),
        grid(
            figure(
                "Held-out reward",
                line_chart(
                    "Held-out reward",
                    [line("reward", evals, "reward_mean", band=("reward_low", "reward_high"))],
                    y_title="mean reward",
                ),
                "Higher is better in the eyes of the reward model. A rise means something once the bands at both ends lie "
                "apart.",
            ),
            figure(
                "Win rate against the start",
                line_chart("Win rate against the start", wins, y_title="share of comparisons", mark=Mark("even", 0.5)),
                "How often a reply beats one that the untrained policy wrote to the same prompt, ties counting half; on the "
                "dashed line it does so no more than by chance.",
            ),
            _optional(
                "Second reward model",
                line_chart("Held-out reward by the second model", [second], y_title="mean reward"),
                "Rewards of a model that training never asked. If they fall while the first ones rise, the policy games the "
                "first model.",
            ),
            figure(
                "Distance from the start",
                line_chart("KL on held-out replies", [kl], y_title="KL in nats a reply", zero=True, mark=mark),
                "How far the policy has moved from the model it started as, estimated from samples, so that it can dip below 0. "
                + far,
            ),
            figure(
                "Length of replies",
                line_chart("Held-out length", [line("length", evals, "length_mean")], y_title="tokens", zero=True),
                "Mean length of a reply. Length that grows along with the reward may be all that was learnt.",
            ),
            figure(
                "Finished replies",
                line_chart(
                    "Held-out replies that ended",
                    [line("finished", evals, "finished_share")],
                    y_title="share",
                    zero=True,
                ),
                "Share of replies that ended by themselves instead of being cut off.",
            ),
        ),
        el("h3", "Evaluations") if table_of_evals else None,
        table_of_evals,
    )


def training_section(steps: Rows) -> Html:
    """Section 2: what the policy wrote and learnt at each step."""
    title = "2. Training"
    if not steps:
        return section("training", title, not_run("Training"))
    run = averaged(len(steps))
    thinned = f" Each point is the mean of {run} neighbouring steps." if run > 1 else ""
    return section(
        "training",
        title,
        note(
            "Each step has other prompts, so single ups and downs mean little. A step at which something was not measured, "
            "for want of pairs for example, has no point there." + thinned
        ),
        grid(
            figure(
                "Reward of the policy's replies",
                line_chart(
                    "Reward of replies", [line("reward", steps, "reward_mean", spread="reward_std")], y_title="reward"
                ),
                "Mean reward of what the policy wrote; the band is one standard deviation up and down.",
            ),
            figure(
                "DPO loss",
                line_chart("DPO loss", [line("loss", steps, "dpo_loss")], y_title="loss in nats"),
                "With the sigmoid loss a policy that has learnt nothing stands at ln 2, about 0.693; lower is better.",
            ),
            figure(
                "Implicit margin",
                line_chart(
                    "Implicit margin",
                    [line("margin", steps, "dpo_margin")],
                    y_title="margin in nats",
                    zero=True,
                ),
                "How much more than the reference the policy prefers the better reply of the step's own pairs, times beta, "
                "before it learns from them: a policy that learns what is rewarded prefers better replies that it never saw.",
            ),
            figure(
                "Pairs ranked rightly",
                line_chart(
                    "Pairs ranked rightly",
                    [line("share", steps, "dpo_accuracy")],
                    y_title="share of pairs",
                    mark=Mark("guessing", 0.5),
                ),
                "Share of pairs whose better reply the policy prefers more than the reference does, before it learns from "
                "them.",
            ),
            figure(
                "KL on the pairs",
                line_chart("KL on the pairs", [line("KL", steps, "kl")], y_title="KL in nats a reply", zero=True),
                "Distance from the reference on the replies being learnt from; a sudden rise is a warning.",
            ),
            figure(
                "Length of replies",
                line_chart(
                    "Length of replies", [line("length", steps, "response_length")], y_title="tokens", zero=True
                ),
                "Mean tokens of a reply.",
            ),
            figure(
                "Finished replies",
                line_chart("Finished replies", [line("share", steps, "finished_share")], y_title="share", zero=True),
                "Share of replies that ended by themselves; the others were cut off at the longest length.",
            ),
            figure(
                "Norm of the gradient",
                line_chart("Norm of the gradient", [line("norm", steps, "grad_norm")], y_title="norm", zero=True),
                "Its size before it is clipped; spikes point to a few odd pairs or too high a rate.",
            ),
            _optional(
                "Likelihood of the better reply",
                line_chart("Likelihood", [line("NLL", steps, "nll")], y_title="NLL in nats a token"),
                "Negative log-likelihood of the chosen replies, which the loss holds as well; lower is better.",
            ),
            figure(
                "Learning rate",
                line_chart("Learning rate", [line("rate", steps, "learning_rate")], y_title="learning rate", zero=True),
                "The size of the updates.",
            ),
            _moved(
                "beta",
                steps,
                "Strength of the pull to the reference; the run raised it where the KL was beyond its limit.",
            ),
        ),
    )


def _limit(drawn: Line, limit: float | None) -> tuple[Mark | None, str]:
    """The limit as a mark where it is near enough, and the words on it."""
    if limit is None:
        return None, ""
    largest = max((p.y for p in drawn.points), default=0.0)
    if limit > _FAR * largest:
        return None, f"The run's limit of {decimal(limit)} lies far above."
    return Mark(f"limit {decimal(limit)}", limit), "Beyond the dashed line the run warns or acts."


def _optional(title: str, picture: Html | None, *caption: Child) -> Html | None:
    """A figure of something that most runs don't measure: left out where there is nothing."""
    return figure(title, picture, *caption) if picture is not None else None


def _moved(key: str, steps: Rows, caption: str) -> Html | None:
    """A figure of a setting, if the run changed it."""
    drawn = line(key, steps, key)
    if len({p.y for p in drawn.points}) < 2:
        return None
    return figure(key.capitalize(), line_chart(key.capitalize(), [drawn], y_title=key, zero=True), caption)
