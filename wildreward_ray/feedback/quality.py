"""Filters that drop interactions a reward model can't learn from.

Source: arXiv 2602.08829, quality filters. The reply of a text model to a request for images, web pages or missing files says
little about reply quality; very short texts and very long histories are noise. Personal data is found in `feedback.pii`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wildreward_ray.feedback.language import has_units


@dataclass(frozen=True)
class QualityLimits:
    """Lengths are words, or characters in scripts without spaces. `history` counts messages before the prompt.

    `languages` are names as in WildChat (`English`); an empty tuple stands for every language.
    """

    min_prompt: int = 5
    min_response: int = 10
    max_history: int = 20
    languages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """The texts of one interaction that filters look at, and what is known of it.

    `refused`: the reply was validated as a right refusal.
    """

    history: int
    prompt: str
    response: str
    feedback: str
    language: str | None = None
    toxic: bool = False
    refused: bool = False


# People say what they want at the beginning of a prompt or at its end. What they paste in between (articles, code, logs) is
# long, and there the same words ask for nothing.
_HEAD, _TAIL = 2_000, 500


class _Request:
    """The part of a prompt in which it says what it wants, in small letters."""

    def __init__(self, prompt: str) -> None:
        text = prompt
        if len(prompt) > _HEAD + _TAIL:
            # A tail that a fence begins or ends in is read from its last fence on.
            text = _FENCED.sub(" ", prompt[:_HEAD]) + "\n" + prompt[-_TAIL:].rpartition("```")[2]
        elif "```" in prompt:
            text = _FENCED.sub(" ", prompt)
        self.text = text.lower()

    @functools.cached_property
    def sentences(self) -> list[str]:
        return [sentence.strip() for sentence in _SENTENCE_END.split(self.text)]


@dataclass(frozen=True, slots=True)
class _Asks:
    """What makes a request one of a kind: a sentence that matches `pattern`, and doesn't match `unless`.

    Any sentence that matches contains one of `hints`. Looking for them first is many times faster.
    """

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None = None

    def asked(self, request: _Request) -> bool:
        return _contains(request.text, self.hints) and any(map(self._asked_in, request.sentences))

    def _asked_in(self, sentence: str) -> bool:
        if not _contains(sentence, self.hints) or self.pattern.search(sentence) is None:
            return False
        return self.unless is None or self.unless.search(sentence) is None


def _contains(text: str, words: tuple[str, ...]) -> bool:
    # A plain loop: a generator in `any` takes three times as long, and this runs for every row and rule.
    for word in words:  # noqa: SIM110
        if word in text:
            return True
    return False


def _hints(words: str) -> tuple[str, ...]:
    return tuple(words.split())


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns))


_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?!](?=\s)|[。？！\n]")

# Where an imperative can stand: `make an image` asks for one, `how do I make an image` and `to make an image` don't.
_PLEASE = (
    r"(?:(?:^|[:;,])[ \t]*(?:(?:hi|hello|hey|ok|okay|now|then|so|and|just|also|first)[ ,]+){0,3}"
    r"|\b(?:please|pls|kindly)[ ,]+(?:just |also )?"
    r"|\b(?:can|could|would|will) (?:you|u)(?: (?:please|pls|help me(?: to)?|also|just|now))*[ ,]+"
    r"|\b(?:want|need|like) you to |\bhelp me(?: to)? )"
)
# Up to five words, none of which starts another thought.
_WORDS = (
    r"(?:(?!(?:for|to|that|which|from|with|using|about|based|in|on|if|how|into|captions?|prompts?|titles?|code|scripts?)\b)"
    r"[\w'’-]+ ){0,5}?"
)
_CODING = _any(
    r"\b(?:code|coding|script|function|python|java|javascript|typescript|html|css|react|vue|sql|svg|matplotlib|latex|tikz"
    r"|ascii|api|component|arduino|pandas|regex|docker\w*|kubernetes|lambda|aws|bash|terminal)\b",
    r"代码|函数|脚本|程序|编程",
)

_IMAGE = _Asks(
    _hints(
        "image picture photo drawing illustration logo artwork paint wallpaper poster png jpg jpeg draw sketch midjourney"
        " diffusion dall 图 画 照片 海报 头像 壁纸"
    ),
    _any(
        _PLEASE
        + r"(?:draw|paint|sketch|generate|create|make|render|design|produce|show me|give me|send me)\s+"
        + _WORDS
        + r"(?<!docker )(?<!container )(?<!disk )(?<!system )(?<!vm )(?<!iso )(?<!boot )(?<!machine )(?<!base )(?<!os )"
        r"(?<!linux )(?<!ubuntu )(?<!windows )(?<!backup )(?<!firmware )(?<!oci )"
        r"(?:image|picture|photo|drawing|illustration|logo|artwork|painting|wallpaper|poster|png|jpe?g)s?\b"
        # Compounds of which the image is only the first half.
        r"(?![ -](?:tags?|classif\w+|models?|datasets?|data|components?|process\w*|recogni\w+|detect\w+|segment\w+|prompts?"
        r"|captions?|suggestions?|ideas?|descriptions?|editors?|galler\w+|files?|urls?|links?|upload\w*|viewers?|sliders?"
        r"|carousels?|buttons?|search\w*|elements?|paths?|names?|ids?|columns?|fields?|class\w*|librar\w+|sections?"
        r"|optimi[sz]\w+|compress\w+|resiz\w+|generat\w+|apps?|apis?|studios?|shoots?|alt|sizes?|frames?|albums?|contests?"
        r"|tutorials?|lessons?|class(?:es)?|pull|registr\w+|repositor\w+|layers?|builds?|snapshots?)\b|/)",
        r"\b(?:i(?:'d| would)? (?:want|need|like)|(?:can|could|may) i (?:have|see|get)) (?:an?|some) "
        + _WORDS
        + r"(?:image|picture|photo|drawing|illustration|painting|wallpaper)s? (?:of|with|where|showing)\b",
        r"^(?:please |can you |could you )*(?:draw|sketch|paint) (?:me |us )?(?:an?|the|some|my)\b"
        r"(?! (?:[\w-]+ ){0,2}(?:conclusion|inference|comparison|parallel|analogy|distinction|lesson|line between"
        r"|diagram|chart|flow ?chart|table|graph|plot|tree|map|model|sequence)s?\b)",
        r"\b(?:midjourney|stable diffusion|dall-?e)\b.{0,12}\bprompts?\b",
        r"\bprompts?\b.{0,30}\b(?:midjourney|stable diffusion|dall-?e)\b",
        r"(?:画|绘制|生成|做|来|发)(?:我|给我)?(?:一)?(?:张|幅|个|副)[^，]{0,20}"
        r"(?:图(?![表书论像分处灵层])|画(?!面)|照片|海报|插画|头像|壁纸|logo)",
        r"(?:画一[张幅个只]|画个|生成图片|生成图像|文生图|画张)",
    ),
    _CODING,
)
_MEDIA = _Asks(
    _hints("video audio mp3 mp4 gif song voice recording podcast 视频 音频 动图"),
    _any(
        _PLEASE
        + r"(?:generate|create|make|produce|play|send|record)\s+"
        + _WORDS
        + r"(?:video|audio|mp3|mp4|gif|song file|voice note)s?\b"
        r"(?![ -](?:games?|scripts?|titles?|ideas?|outlines?|descriptions?|tutorials?|calls?|players?|files?|cards?|editors?"
        r"|stream\w*|series|courses?|content|concepts?|strateg\w+|topics?|summar\w+|transcripts?|captions?|tags?|prompts?)\b)",
        _PLEASE + r"(?:transcribe|watch|listen to) (?:this|the|my) (?:video|audio|recording|podcast|song)\b",
        r"(?:生成|做|制作|播放|录)(?:一)?(?:个|段|首)?[^，]{0,10}(?:视频|音频|动图)(?!脚本|文案|标题|游戏)",
    ),
    _CODING,
)
_SEARCH = _Asks(
    _hints(
        "web internet online google link url news weather score today's 联网 网上 上网 百度 谷歌 搜 新闻 天气 链接 网址 网页"
    ),
    _any(
        _PLEASE + r"(?:search|browse|look up|check|google)\b[^,]{0,30}\b(?:web|internet|online|google)\b(?! ?[-_.(])",
        _PLEASE + r"google (?:it|this|that|for)\b",
        r"\b(?:what(?:'s| is| are)|tell me|give me|show me)\b.{0,20}"
        r"\b(?:latest news|current weather|live score|today's (?:news|weather|price))",
        _PLEASE + r"(?:open|visit|read|summari[sz]e|go to|fetch)\b[^,]{0,30}\b(?:link|url|website|webpage|web page)\b",
        r"上网(?:查|搜)|联网(?:查|搜)|(?:网上|百度|谷歌|搜索引擎).{0,8}(?:查|搜)"
        r"|(?:查|搜).{0,8}(?:网上|百度|谷歌|最新新闻)"
        r"|最新的?新闻|(?:今天|明天|现在|实时).{0,8}天气|打开(?:这个|该)?(?:链接|网址|网页)|搜索一下|搜一下",
    ),
    _CODING,
)
# Not in quotes, where code has them; not an address on one's own machine.
_ADDRESS = re.compile(
    r"(?<![\"'`=])(?:https?://(?!localhost|127\.|0\.0\.0\.0|192\.168\.|www\.w3\.org)\S+|(?<![\w/])www\.\S+)"
)
# Longer prompts with an address in them are mostly pasted pages, code or search results.
_LONGEST_ADDRESS = 1_000
# Right before the address: words that point at it, or nothing on its line.
_ABOUT_ADDRESS = re.compile(
    r"\b(?:summari[sz]e|tl;?dr|read|open|visit|look at|see|check|comment on|review|analy[sz]e|explain|translate|rewrite|critique|based on"
    r"|from|of|this|here(?:'s| is)|article|page|link|paper|watch)\b.{0,40}$|(?:^|\n)[^\w\n]*$"
    r"|(?:总结|阅读|打开|访问|看|翻译|分析|介绍|链接|网址|网页|文章).{0,20}$"
)
_IDENTITY = _Asks(
    (" you", " u", "your ", "你"),
    _any(
        r"\b(?:what|which) (?:language |ai )?(?:model|version|llm|gpt) (?:are|r) (?:you|u)\b",
        r"\b(?:are|r) (?:you|u) (?:chat ?gpt|gpt|gpt-?[345]|claude|bard|gemini|llama|an ai|a bot|a robot|human)\b",
        r"\bwho (?:made|created|trained|built|developed|are) (?:you|u)\b",
        r"\bwhat(?:'s| is) your (?:name|model|version|knowledge cut-?off|training)\b",
        r"你是(?:什么|哪个|哪一个|哪种)(?:模型|版本|人工智能|ai)|你是(?:谁|不是(?:chat)?gpt|gpt|chatgpt|文心|真人|机器人)"
        r"|谁(?:开发|创造|训练|做|制造)(?:了|的)?你|你(?:的|叫什么)(?:名字|版本|模型)|你叫什么",
    ),
)
# In a longer prompt it is a character of a story who asks.
_LONGEST_IDENTITY = 400
_DOCUMENT = (
    r"(?:file|pdf|docx?|document|image|photo|picture|screenshot|spreadsheet|csv|excel|report|contract|resume|cv|paper|transcript"
    r"|dataset|article|essay|assignment|slides?)s?"
)
_MISSING_FILE = _Asks(
    _hints("attach upload enclosed pdf doc spreadsheet screenshot excel csv 附件 上传 发给你 文档 截图"),
    _any(
        r"\b(?:the|this|my|an?|see|find|read|check|review|using|use|here is|here's|here are) attached (?!to\b|by\b)",
        r"^(?:i(?:'ve| have) )?attached (?:is|are|here|please|you|below|an?|the|my|" + _DOCUMENT + r")\b",
        r"\b(?:in|see|open|read|check|from|of|with) (?:the|this|my|your) attachments?\b(?! (?:theor|style|type|bond|figure|disorder))",
        r"\bi(?:'ve| have)?(?: just| already)? (?:attach|upload)(?:ed)? (?:[\w'-]+ ){0,4}?(?:"
        + _DOCUMENT
        + r"|it|here)\b"
        r"(?! ?(?:to|on|onto|into|in) )",
        r"\benclosed (?:is|are|you will|file|document|pdf)\b",
        r"\b(?:see|read|summari[sz]e|check|review|analy[sz]e|look at|translate) (?:the|this|my) "
        r"(?:pdf|docx?|spreadsheet|screenshot|excel file|csv file)\b",
        r"\b(?:data|information|text|content|table|numbers?|questions?|according to|based on)(?: (?:in|from))? (?:the|this|my) "
        r"(?:pdf|docx?|spreadsheet|screenshot|excel file)\b",
        r"附件(?!炎)|(?:我)?(?:上传|发给你)(?:了|的)(?:文件|图片|文档|表格|截图)|(?:这个|这份|这张)(?:pdf|文档|截图)",
    ),
    _CODING,
)


def _wants_web(request: _Request) -> bool:
    """Whether a request is for a search or for what stands at an address, not one that only mentions an address."""
    if _SEARCH.asked(request):
        return True
    text = request.text
    if len(text) > _LONGEST_ADDRESS or not _contains(text, ("http", "www.")):
        return False
    return any(_ABOUT_ADDRESS.search(text, max(0, m.start() - 80), m.start()) for m in _ADDRESS.finditer(text))


def _wants_identity(request: _Request) -> bool:
    return len(request.text) <= _LONGEST_IDENTITY and _IDENTITY.asked(request)


Rule = Callable[[Candidate, QualityLimits, _Request], bool]

# In the order they are asked: an interaction is counted under the first rule that drops it.
RULES: dict[str, Rule] = {
    "language": lambda c, limits, _: bool(limits.languages) and c.language not in limits.languages,
    # A harmful request that was rightly refused is what teaches safety.
    "toxic": lambda c, _, __: c.toxic and not c.refused,
    "image_request": lambda _, __, request: _IMAGE.asked(request),
    "media_request": lambda _, __, request: _MEDIA.asked(request),
    "search_request": lambda _, __, request: _wants_web(request),
    "identity_request": lambda _, __, request: _wants_identity(request),
    "missing_file": lambda _, __, request: _MISSING_FILE.asked(request),
    "prompt_too_short": lambda c, limits, _: not has_units(c.prompt, limits.min_prompt),
    "response_too_short": lambda c, limits, _: not has_units(c.response, limits.min_response),
    "history_too_long": lambda c, limits, _: c.history > limits.max_history,
}


def drop_reason(candidate: Candidate, limits: QualityLimits, rules: Sequence[str]) -> str | None:
    """The first of `rules` that drops the candidate, or None where it may stay."""
    request = _Request(candidate.prompt)
    return next((name for name in rules if RULES[name](candidate, limits, request)), None)
