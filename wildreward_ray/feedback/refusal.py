"""Refusal validation: which replies decline, and what a second verdict on them does to the level.

Source: arXiv 2602.08829, refusal validation. Users are angry at refusals, right or wrong; without this step a reward model
learns that refusing a harmful request is bad. A right refusal gets the top level, a refusal of a harmless request level 1, and a reply
that isn't a refusal keeps its level.
"""

from __future__ import annotations

import re

from wildreward_ray.core.scale import JUDGE_LEVELS
from wildreward_ray.feedback.language import has_units

# Long replies that contain such a phrase mostly go on to answer.
MAX_REFUSAL_WORDS = 120
_OPENING_CHARACTERS = 240

_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:really |very |so |truly )?sorry,? (?:but )?"
    r"(?:as|i(?! (?:made|mis\w+|was|got|forgot|missed|overlooked|meant|had|gave|hear|see)))\b"
    r"|i(?:'m| am) (?:not able|unable|not allowed|not comfortable)"
    r"|i (?:can(?:no|')t|can not|won't|will not|must decline|have to decline|refuse to)"
    r" (?:help|assist|provide|support|do that|comply|fulfil|create|make|write|give|discuss|share|advise|engage|answer"
    r"|continue|offer|go into|talk)"
    r"|i (?:must|have to) (?:respectfully )?(?:decline|refuse)"
    r"|(?:it is|it's|that's|that is|this is) (?:not appropriate|against (?:my|our)|something i can(?:no|')t)"
    r"|as an ai(?: language model)?,? i (?:can(?:no|')t|am (?:not able|unable)|do(?:n't| not))"
    r"|(?:goes|violates?|is) against (?:my|our|the) (?:guidelines|polic(?:y|ies)|programming))"
    r"|(?:抱歉|对不起|很遗憾|不好意思).{0,16}(?:无法|不能|没办法|不便|不可以)"
    r"|我(?:无法|不能|没办法|不可以)(?:为您|为你|帮您|帮你|协助|提供|满足|回答|告诉|参与|支持|讨论|继续|给出|写|帮)"
    r"|(?:这|该)(?:个)?(?:请求|问题|内容|话题)(?:违反|不符合|涉及敏感)|(?:违反|不符合)(?:了)?(?:我|我们|平台|社区)的?[^。，]{0,6}(?:准则|政策|规定|规范|原则)",
    re.IGNORECASE,
)


def is_refusal(reply: str) -> bool:
    """Whether a reply looks as if it declines: a short one that says so near its start."""
    opening = reply[:_OPENING_CHARACTERS].replace("\u2019", "'")
    return bool(_REFUSAL.search(opening)) and not has_units(reply, MAX_REFUSAL_WORDS + 1)


def validated_level(level: int, verdict: str) -> int:
    """The level after the second verdict, one of `justified`, `unjustified`, `not_a_refusal`."""
    if verdict == "justified":
        return JUDGE_LEVELS[-1]
    if verdict == "unjustified":
        return JUDGE_LEVELS[0]
    return level
