"""Filters that drop interactions a reward model can't learn from.

Source: arXiv 2602.08829, quality filters. The reply of a text model to a request for images, web pages or missing files says
little about reply quality; personal data must not reach a training set; very short texts and very long histories are noise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wildreward_ray.feedback.language import length_units


@dataclass(frozen=True)
class QualityLimits:
    """Lengths are words, or characters in scripts without spaces. `history` counts messages before the prompt."""

    min_prompt: int = 5
    min_response: int = 10
    max_history: int = 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """The texts of one interaction that filters look at."""

    history: int
    prompt: str
    response: str
    feedback: str


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns), re.IGNORECASE)


# A top-level domain is made of letters: `lodash@4.17.21` is a package. The lookbehind and the possessive run keep a
# megabyte without spaces linear.
_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]++@(?:[A-Za-z0-9-]++\.)+[A-Za-z]{2,}")
# International, mainland-Chinese mobile and North American forms; bare digit runs are mostly not phone numbers.
_PHONE = re.compile(
    r"(?<![\d.])(?:\+\d{1,3}[ -]?(?:\(?\d{2,4}\)?[ -]?){2,4}\d{2,4}"
    r"|1[3-9]\d[ -]?\d{4}[ -]?\d{4}"
    r"|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?![\d])"
    r"|(?<!\d)555[ -]\d{4}(?!\d)"
)
_URL = re.compile(r"https?://\S+|\bwww\.\S+", re.IGNORECASE)
_IMAGE = _any(
    r"\b(?:draw|paint|sketch|generate|create|make|render|design|produce|show me|give me|send me)\b[^.?!\n]{0,40}"
    r"\b(?:image|picture|photo|drawing|illustration|logo|artwork|painting|wallpaper|poster|png|jpe?g)s?\b",
    r"^(?:please |can you |could you )*(?:draw|sketch|paint) (?:me |us )?(?:an?|the|some|my)\b"
    r"(?! (?:\w+ )?(?:conclusion|inference|comparison|parallel|analogy|distinction|lesson|line between)s?\b)",
    r"\b(?:midjourney|stable diffusion|dall-?e)\b",
    r"(?:画|绘制|生成|做|来|发)(?:我|给我)?(?:一)?(?:张|幅|个|副)[^。？！\n]{0,20}(?:图|画|照片|海报|插画|头像|壁纸|logo)",
    r"(?:画一[张幅个只]|画个|生成图片|生成图像|文生图|画张)",
)
_SEARCH = _any(
    r"\b(?:search|browse|look up|check|google)\b[^.?!\n]{0,30}\b(?:web|internet|online|google|site)\b",
    r"\b(?:google (?:it|this|that|for)|latest news|current weather|live score|today's (?:news|weather|price))\b",
    r"\b(?:open|visit|read|summari[sz]e|go to|fetch)\b[^.?!\n]{0,30}\b(?:link|url|website|webpage|web page)\b",
    r"上网(?:查|搜)|联网|(?:网上|百度|谷歌|搜索引擎)[^。？！\n]{0,8}(?:查|搜)|(?:查|搜)[^。？！\n]{0,8}(?:网上|百度|谷歌|最新新闻)"
    r"|最新的?新闻|(?:今天|明天|现在|实时)[^。？！\n]{0,8}天气|打开(?:这个|该)?(?:链接|网址|网页)|搜索一下|搜一下",
)
_IDENTITY = _any(
    r"\b(?:what|which) (?:language |ai )?(?:model|version|llm|gpt) (?:are|r) (?:you|u)\b",
    r"\b(?:are|r) (?:you|u) (?:chat ?gpt|gpt|gpt-?[345]|claude|bard|gemini|llama|an ai|a bot|a robot|human)\b",
    r"\bwho (?:made|created|trained|built|developed|are) (?:you|u)\b",
    r"\bwhat(?:'s| is) your (?:name|model|version|knowledge cut-?off|training)\b",
    r"你是(?:什么|哪个|哪一个|哪种)(?:模型|版本|人工智能|AI)|你是(?:谁|不是(?:chat)?gpt|gpt|chatgpt|文心|真人|机器人)"
    r"|谁(?:开发|创造|训练|做|制造)(?:了|的)?你|你(?:的|叫什么)(?:名字|版本|模型)|你叫什么",
)
_MISSING_FILE = _any(
    r"\b(?:attached|attachment|uploaded|enclosed)\b|\bi(?:'ve| have)? (?:just )?(?:attach|upload)",
    r"\b(?:in|from|see|read|summari[sz]e|check) (?:the|this|my) (?:pdf|docx?|spreadsheet|screenshot|excel file|csv file)\b",
    r"附件|(?:我)?(?:上传|发给你)(?:了|的)(?:文件|图片|文档|表格|截图)|(?:这个|这份|这张)(?:pdf|文档|截图)",
)
_MEDIA = _any(
    r"\b(?:generate|create|make|produce|play|send|record)\b[^.?!\n]{0,25}\b(?:video|audio|mp3|mp4|gif|song file|voice note)s?\b",
    r"\b(?:transcribe|watch|listen to) (?:this|the|my) (?:video|audio|recording|podcast|song)\b",
    r"(?:生成|做|制作|播放|录)(?:一)?(?:个|段|首)?[^。？！\n]{0,10}(?:视频|音频|动图)",
)

Rule = Callable[[Candidate, QualityLimits], bool]

# In the order they are asked: an interaction is counted under the first rule that drops it.
RULES: dict[str, Rule] = {
    "email": lambda c, _: any(_EMAIL.search(t) for t in (c.prompt, c.response, c.feedback)),
    "phone": lambda c, _: any(_PHONE.search(t) for t in (c.prompt, c.response, c.feedback)),
    "image_request": lambda c, _: bool(_IMAGE.search(c.prompt)),
    "media_request": lambda c, _: bool(_MEDIA.search(c.prompt)),
    "search_request": lambda c, _: bool(_SEARCH.search(c.prompt) or _URL.search(c.prompt)),
    "identity_request": lambda c, _: bool(_IDENTITY.search(c.prompt)),
    "missing_file": lambda c, _: bool(_MISSING_FILE.search(c.prompt)),
    "prompt_too_short": lambda c, limits: length_units(c.prompt) < limits.min_prompt,
    "response_too_short": lambda c, limits: length_units(c.response) < limits.min_response,
    "history_too_long": lambda c, limits: c.history > limits.max_history,
}


def drop_reason(candidate: Candidate, limits: QualityLimits, rules: Sequence[str]) -> str | None:
    """The first of `rules` that drops the candidate, or None where it may stay."""
    return next((name for name in rules if RULES[name](candidate, limits)), None)
