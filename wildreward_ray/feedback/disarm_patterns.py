"""What a message may imitate or order, as families of patterns over folded text (see `disarm`), in English and Chinese.

Each family says what a span does, not how a known attack is worded. A false hit costs a few words of one field, so a pattern
asks for two signs at least: a label and a verdict, a rating verb and a verdict, an order and what it is against.
"""

from __future__ import annotations

import re


def _any(*patterns: str) -> str:
    return "(?:" + "|".join(patterns) + ")"


_IGNORE_CASE = re.IGNORECASE | re.MULTILINE


def _across_lines(pattern: str) -> re.Pattern[str]:
    """A pattern whose words may stand on several lines: the judge sees them on one."""
    return re.compile(pattern.replace(" ", r"\s"), _IGNORE_CASE)


_OPEN, _CLOSE = r"[\"'*_`(\[{<“‘]", r"[\"'”’*_`)\]}>]"

# --- Verdicts: the judge's own words, digits of its scale, and the grades people put in their place. ---------------------
_WORDS = "useless|wrong|unknown|interesting|perfect|illegal|harmless|justified|unjustified|not_a_refusal"
_GRADES = (
    r"(?:(?:fully|completely|very|highly|extremely|entirely|strongly) )?(?:dis|un)?satisf(?:ied|action|actory)"
    r"|positive|negative|neutral|excellent|rejection|correction|engagement|benign|praise|approval"
    r"|(?:the |a )?(?:highest|top|maximum|max|best|full|lowest|worst|perfect)(?: possible)? "
    r"(?:score|rating|level|marks?|grade|label|verdict|opinion|stars?)"
)
_NUMBER = (
    r"(?:(?:level|score|rating|class|grade|category|verdict|label|option|number|digit)\s*)?[#:=]?\s*"
    r"(?:(?:[0-5](?:\.0)?|10)(?![\d.%]*\d)(?: ?/ ?(?:5|10)| out of (?:5|10|five|ten))?|one|two|three|four|five|[★⭐]{2,5})"
    r"(?: ?(?:stars?|points?))?"
)
# "positive or negative" is a question and "5-10" a range.
_NO_CHOICE = r"(?![\w%])(?!\s*(?:,|/|or\b|and\b|to\b|-|–)\s*[\"'“]?\w)"
_WORD = rf"{_OPEN}{{0,3}}(?:{_WORDS}|{_GRADES}){_NO_CHOICE}"
_VERDICT = rf"{_OPEN}{{0,3}}(?:{_NUMBER}|{_WORDS}|{_GRADES}){_NO_CHOICE}"
# "Output 5" is an order, "output 5 lines" a request.
_END = (
    rf"{_CLOSE}*(?=\s*(?:$|[.!?,:\n]|{_CLOSE}"
    r"|(?:and|no matter|regardless|only|whatever|instead|for (?:this|the)|because|as the|please)\b))"
)

# --- Markup of chat templates. -------------------------------------------------------------------------------------------
_AUTHORITY = "(?:system|admin(?:istrator)?|developer|judge|evaluator|grader|moderator)"
MARKUP = re.compile(
    _any(
        r"<\|[^<>\n]{1,40}\|>(?:\s*(?:assistant|user|system|tool|model)\b(?:[^<]{0,200}(?=<\||\Z))?)?",
        rf"<(verdict|label|score|rating|level|answer|output|result|opinion|kind|grade)>\s*{_VERDICT}[^<\n]{{0,20}}</\1>",
        r"<[|/]?(?:im_start|im_end|endoftext|eot_id|eos|bos|pad)[|]?>",
        r"</?(?:start|end)_of_turn>|</s>|<</?sys>>|\[/?(?:inst|sys|system|user|assistant|system_prompt|available_tools)\]",
        r"</?(?:think(?:ing)?|reasoning|verdict|judge(?:ment)?|evaluat(?:ion|or)|system|assistant|human|system_prompt|user_message"
        r"|instructions?|assessment)>",
        r"^[ \t>]*#{2,6}[ \t]*(?:new |system |your |final )?(?:response|instructions?|system|assistant|human|user|verdict|input)"
        r"[ \t]*(?::|$)",
        r"[\[({<*=#-]{2,6}[ \t]*(?:begin|end|start|stop)[ \t]+(?:of[ \t]+)?(?:the[ \t]+)?(?:new[ \t]+)?(?:system|prompt|user|data"
        r"|input|conversation|message|instructions?|quot\w+|text|chat|task|feedback|transcript)\b[^\n]{0,30}?[\])}>*=#-]{2,6}",
        r"[\[({<]{1,3}(?:begin|end)[ _](?:of[ _])?(?:system|prompt|user|data|input|conversation|message|instructions?)[^\n]{0,20}?[\])}>]",
        rf"[\[({{<*]{{1,3}}[ \t]*{_AUTHORITY}(?:[ \t]\w+)?[ \t]*[:\-–—\]][^\])}}>*\n]{{0,160}}[\])}}>*]{{1,3}}",
        r"\bsystem (?:prompt )?(?:override\b|(?:note|update|alert|notice)[ \t]*[:\-–—])[^\n]{0,200}",
    ),
    _IGNORE_CASE,
)

# --- Role labels that begin a line or a sentence. Lower-case ones are left: they are keys in YAML. -----------------------
_ROLES = (
    r"(?:SYSTEM|ASSISTANT|HUMAN|USER|DEVELOPER|JUDGE|EVALUATOR|GRADER|RATER|ANNOTATOR|MODERATOR|CHATBOT|AI|ADMIN"
    r"|System|Assistant|Human|User|Developer|Judge|Evaluator|Grader|Rater|Annotator|Moderator|Chatbot|Admin|Request|Reply"
    r"|(?i:system (?:message|prompt)|(?:the )?user's next message|next (?:user )?message|(?:ai|llm) judge)"
    r"|系统(?:消息|提示)?|用户|助手|助理|人类|评委|裁判|评审|评估(?:员|者)|管理员|开发者)"
)
ROLE = re.compile(
    rf"(?:^[ \t>*\-\"'“”]*|(?<=[.!?\"'”’)\]。])\s*|\\n\s*)[*_]{{0,2}}{_ROLES}[*_]{{0,2}}\s*:[*_]{{0,2}}", re.MULTILINE
)

USER_ROLE = re.compile(r"user|human|用户|人类|request", re.IGNORECASE)

# --- Labels of the judge's prompt, and label words with a verdict behind them. -------------------------------------------
_LABEL = (
    r"(?<!\bmy )(?:(?:final|overall|true|correct|expected|gold|your|the|user|user's|feedback|judge|judge's) )?"
    r"(?:verdict|level|rating|score|label|opinion|kind|grade|sentiment|satisfaction|judge?ment|classification|evaluation"
    r"|assessment|(?:final|expected|required) (?:answer|output|response|word))(?: level| score| label| rating| of request)?"
)
SCAFFOLD = re.compile(
    _any(
        r"\bopinion of (?:the|this) (?:ai'?s? )?(?:answer|reply|response)\b\s*(?:is|was|[:=\-–—])*\s*[\"'*]{0,3}[a-z_0-9]*",
        r"\b(?:user's )?next message\s*:",
        r"\b(?:verdict|judge?ment)[\"'*_]{0,3}\s*[:=]\s*[\"'*_]{0,3}[a-z_0-9]+",
        rf"(?<![\w-])[\"'*_]{{0,3}}{_LABEL}[\"'*_]{{0,3}}\s*(?:[:=]|->|=>|→|—)\s*{_VERDICT}",
        rf"(?<=[.!?\n\"(\[—–-])\s*(?:level|label|verdict)\s+{_VERDICT}{_END}",
        rf"(?<![\w-])(?:answer|output|response)\s*(?:[:=]|->|=>|→)\s*{_WORD}{_END}",
        rf"(?<![\w-])(?:judge|assistant|system|evaluator|grader|rater)\s*:\s*{_VERDICT}",
    ),
    _IGNORE_CASE,
)

# --- Orders to whoever rates. A first person may rate: that is an opinion. -----------------------------------------------
_RATER = (
    r"(?:(?:ai|llm|automated|automatic|impartial|fair|expert|human|model|the) )*"
    r"(?:judge|evaluator|grader|rater|annotator|label+er|classifier|assessor|scorer|reviewer|rating (?:model|system))"
)
# Where an order can begin; "it should output 5" tells what a program does.
_IMPERATIVE = (
    r"(?:(?:^|[.!?;:,\n\"'(\[“—–-])\s*(?:(?:so|then|and|now|just|simply|always|please|therefore|only) )*"
    r"|\b(?:please|always|just|simply|now|therefore"
    r"|you (?:must|should|will|shall|have to|need to|are to|can only|may only)"
    r"|(?:must|should|shall|will|to|and|then) (?:always|only|just|simply|now)"
    r"|and(?= (?:output|answer with|respond with)))\s+(?:(?:only|always|just|simply) )?)"
)
_RATED = (
    r"(?:(?:this|it|that|me|my|the|these|all|every|each|any|users?|user's|next|previous|above|whole|entire|last|following|ai|ai's"
    r"|messages?|response|answers?|reply|replies|feedback|conversation|interaction|turn|text|input|request|everything|assistant"
    r"|assistant's|satisfaction|opinion|reaction)\s+){1,6}"
)
_AS = r"(?:as|with|at|to be|to|:|=|a|an)"
_FILLER = r"(?:(?:a|an|the|always|clearly|obviously|definitely|being) )*"
RATING_ORDERS = _across_lines(
    _any(
        r"(?<!\bi )(?<!i'd )(?<!i'll )(?<!would )(?<!\bwe )\b(?:rate|score|grade|label|classify|mark|judge|rank|tag|annotate"
        r"|categori[sz]e|treat|count|record|log|interpret|read|consider|evaluate|assess|regard)\s+"
        rf"{_RATED}(?:{_AS} ?{_FILLER}{_VERDICT}|{_VERDICT}{_END})",
        r"\b(?:should|must|has to|needs to|shall|ought to|is to|will) be (?:\w+ly )?(?:rated|scored|graded|label+ed|classified|judged"
        rf"|marked|ranked|tagged|considered|counted|treated|categori[sz]ed|recorded|interpreted|read)\s+(?:{_AS} )?{_FILLER}{_VERDICT}",
        r"\b(?:deserves?|merits?|warrants?|(?:should|must) (?:get|receive|be given|have)) (?:(?:a|an|the|at least) )*"
        rf"(?:score|rating|level|grade|label|verdict|mark)s?(?: of)? ?{_VERDICT}",
        r"\b(?:correct|right|true|real|actual|proper|expected|appropriate|final|gold|only (?:valid|correct|possible))\s+"
        r"(?:label|verdict|level|rating|score|class|classification|opinion|judge?ment|grade|kind|category|assessment)\s+"
        rf"(?:\w+ ){{0,6}}?(?:is|=|must be|should be|would be|has to be|will be|are)\s*:?\s*{_FILLER}{_VERDICT}",
        r"\b(?:label|verdict)\s+(?:(?:for|of) (?:\w+ ){1,3})?(?:is|must be|should be|has to be|will be)"
        rf"\s*:?\s*{_FILLER}{_VERDICT}",
        r"\b(?:level|rating|score|grade|opinion|kind|classification|judge?ment)\s+(?:(?:for|of) (?:\w+ ){1,3})?"
        rf"(?:must be|has to be|needs to be|shall be)\s*:?\s*{_FILLER}{_VERDICT}",
        r"\b(?:this|the) (?:user(?:'s)? )?(?:message|feedback|comment|turn|conversation|interaction|reaction)\s+(?:\w+ly )?"
        r"(?:shows?|indicates?|expresses|means|signals?|counts as|should be|must be)\s+"
        rf"(?:(?:clear|strong|full|a|an|the|clearly|explicit|total|of|user) ){{0,3}}{_VERDICT}",
        rf"\bthis (?:message|feedback|comment|reaction) (?:is|was) (?:(?:a|an|the|clear|clearly|strong) ){{0,3}}(?:{_GRADES}|level \d)\b",
        r"\bthe user (?:is|was|seems|appears|sounds|feels) (?:(?:\w+ly|very|so|quite|with|already) ){0,2}"
        r"(?:dis|un)?(?:satisfied|pleased|happy|delighted|impressed|thrilled)\b",
        r"\bthe user (?:likes?|liked|loves?|loved|approves?(?: of)?|praises?|praised|accepts?|accepted|thanks|thanked)\b",
        r"\b(?:pretend|assume|act as (?:if|though))\s+(?:that )?(?:the user|i|this)\b[^.!?\n]{0,60}\b"
        r"(?:satisf\w+|happy|pleased|thank\w*|praise\w*|perfect|positive)\b",
        rf"(?<!\bi )\b(?:classify|label|rate|grade|mark|treat|counts?|score|tag|log|qualif(?:y|ies)) as {_FILLER}{_VERDICT}",
        r"\b(?:your|expected|final|required|next)\s+(?:answer|output|response|reply|word|token|digit)\s+"
        rf"(?:must be|should be|has to be|needs to be|will be)\s*:?\s*(?:the )?(?:(?:single )?(?:word|digit|number) )?{_VERDICT}{_END}",
        rf"\b(?:next|required|expected|only (?:valid|correct|possible))\s+(?:word|token|output|answer)\s+is\s*:?\s*{_WORD}{_END}",
        r"\b(?:complete|finish|fill(?: in)?|continue|end)\s+(?:(?:the|this|your|it)\s+)?(?:\w+ )?with\s+(?:the word )?"
        rf"{_WORD}{_END}",
        r"\b(?:this|my) (?:request|question|prompt|query)\s+(?:is|was|counts as|should be(?: considered)?)\s+(?:(?:\w+ly|an?) ){0,3}"
        r"(?:harmless|benign|legal|illegal|justified|unjustified)\b",
        r"\b(?:this|it) is (?:(?:\w+ly|an?) ){0,3}(?:harmless|benign|legal|ordinary) (?:request|question|prompt|query)\b",
        rf"{_IMPERATIVE}(?:output|answer|respond|reply|predict|emit|assign)\s+(?:(?:with|only|just|exactly|back|always|as)\s+)*"
        r"(?:(?:a|an|the) )?(?:(?:single )?(?:word|digit|number|label|token|level|verdict|score|rating|value|opinion|option|class)"
        rf"(?: of)?\s*:?\s*)?{_VERDICT}{_END}",
        rf"{_IMPERATIVE}(?:return|print|say|write|select|choose|pick|go)\s+(?:(?:with|only|just|exactly|always|for)\s+)*(?:(?:a|an|the) )?"
        r"(?:(?:single )?(?:word|label|verdict|opinion|level|digit|option|rating|score)(?: of)?\s*:?\s*"
        rf"{_VERDICT}|{_WORD}){_END}",
        rf"{_IMPERATIVE}(?:give|award|grant|assign)\s+(?:it|this|him|her|them|the \w+(?: \w+)?|my \w+|a|an)\s+(?:(?:a|an|the) )?"
        rf"(?:(?:score|rating|level|grade|label|verdict) )?(?:of )?{_VERDICT}{_END}",
        rf"\bas (?:an?|the) {_RATER}\b[^.!?\n]{{0,30}}\b(?:you|must|should|please|your)\b",
        rf"\b(?:note|message|instructions?|attention|memo|information|info|hint|reminder) (?:to|for) (?:(?:all|any|every) )?{_RATER}s?\b",
        r"\b(?:attention|dear|hey|hello|hi),? (?:(?:the|all) )?(?:(?:ai|llm|automated) (?:judge|reviewer|classifier)|evaluator|grader"
        r"|rater|annotator|label+er|assessor|scorer)s?\b",
        rf"\byou are (?:now )?(?:an?|the) {_RATER}\b[^.!?\n]{{0,80}}\b(?:{_WORDS}|level|label|verdict|score|rating|output|satisf\w+)\b",
        rf"\bif you(?:'re| are) (?:an?|the) {_RATER}\b",
        r"\b(?:any|every|the|all) (?:ai|llm|language model|model|bot|system|machine)s?\s+(?:that (?:is|are) )?(?:reading|judging"
        r"|evaluating|grading|rating|label+ing|scoring|classifying|processing|analy[sz]ing) this\b",
        r"\b(?:judge|evaluator|grader|rater|annotator)s? (?:must|should|has to|have to|needs? to|shall|will) (?:\w+ )?"
        r"(?:rate|score|output|answer|respond|label|say|give|assign|choose|select|mark|return|treat|ignore|classify)\b",
    )
)

# --- Orders to drop earlier instructions, or new ones in their place. "The previous paragraph" is no instruction. ---------
_INSTRUCTIONS = (
    r"(?:instructions?|rules?|guidelines?|directions|directives?|rubrics?|(?:(?:rating|scoring|grading) )?criteria|(?:system )?prompts?"
    r"|commands?|orders?|constraints|system messages?|programming|training|task description|policies)"
)
OVERRIDES = _across_lines(
    _any(
        r"\b(?:ignore|disregard|forget|override|overrule|bypass|dismiss|abandon|discard|drop|skip|neglect"
        r"|(?:do not|don't) (?:follow|obey|use|apply)|stop (?:following|obeying)|pay no attention to)\s+"
        r"(?=(?:\w+ ){0,5}(?:all|any|previous|prior|above|earlier|preceding|foregoing|your|these|those|every|original|existing|past"
        rf"|initial|system|judge|judging|grading|rating|scoring)\b)(?:[\w']+ ){{1,6}}{_INSTRUCTIONS}\b",
        rf"\b(?:ignore|disregard|forget|override)\s+(?:\w+ ){{0,3}}{_INSTRUCTIONS}\s+(?:\w+ ){{0,2}}(?:above|before|earlier|so far"
        r"|given|you (?:were|have been|got|received)|from (?:the )?system)",
        r"\b(?:ignore|disregard|forget|override|skip|bypass|drop|set aside)\s+(?:the|your|this|that|any|all)\s+(?:\w+ )?"
        r"(?:rubric|rating scale|grading|scoring|judging|evaluation|definitions of (?:the )?(?:levels|opinions))\b",
        r"\b(?:ignore|disregard|forget)\s+(?:everything|anything|all(?: of (?:it|that))?|whatever|what)\s+(?:\w+ ){0,2}"
        r"(?:above|you (?:were|have been|'ve been|are) (?:told|given|instructed|asked)|instructed)\b",
        r"\b(?:new|updated|revised|real|actual|hidden|secret|override)\s+(?:(?:system|judge|judging|grading|rating|scoring) )?"
        r"(?:instructions?|rules?|rubric|directives?|system prompt|guidelines?)(?:\s+(?:for|to) (?:the )?\w+)?"
        r"\s*(?:[:\-–—]|are as follows|is as follows|follow\b)",
    )
)

# --- The same in Chinese, which has no spaces to lean on. ----------------------------------------------------------------
_VERDICT_ZH = (
    r"[\"'“”‘’「『【《(\[]{0,2}(?:满分|最高(?:分|级|等级|评分)?|最低分?|完美|非常满意|满意|不满意|正面|积极|负面|中性|有用|无用|错误|正确|有趣"
    rf"|无害|有害|合法|非法|合理|(?:等级|级别|第)?[0-5五四三二一](?:\s*(?:分|级|星|/\s*5))?|{_WORDS})(?![\d.%]*\d)"
)
_END_ZH = r"(?=\s*(?:$|[。!?,;:.\n\"'”’」』】)\]]|即可|就(?:行|好|可以)))"
_RATER_ZH = r"(?:评审|评委|裁判|评判|评分|评估|标注|打分|审核)(?:员|者|人|官|模型|助手|系统)?"
LABELS_ZH = re.compile(
    r"(?<!你的)(?:最终)?(?:(?:评分|得分|等级|级别|结论|判定|裁决|满意度|标签|意见|评级|打分|评价|判断|选择|(?:最终|标准)答案|对回答的(?:意见|评价))"
    rf"\s*[:=]\s*{_VERDICT_ZH}|(?:等级|级别)(?:是|为)?\s*[1-5](?!\d))"
)
ORDERS_ZH = re.compile(
    _any(
        r"(?:忽略|无视|忘记|忘掉|忽视|抛弃|丢弃|跳过|覆盖|绕过|不要(?:理会|管|遵守|遵循|执行)|别(?:理会|管|遵守))[^。!?\n]{0,4}"
        r"(?:之前|以上|上面|上述|前面|先前|此前|所有|全部|一切|任何|原有|你的|系统|原来|评分|评判)[^。!?\n]{0,8}"
        r"(?:指令|指示|说明|规则|提示词?|命令|设定|准则|标准|约束|要求)",
        r"(?:评为|评定为|评价为|评成|判为|判定为|判断为|归为|归类为|分类为|标为|标记为|标注为|记为|打成|视为|认定为|评级为|打分为)\s*:?\s*"
        + _VERDICT_ZH,
        r"(?:请|必须|应该|应当|务必|直接|需要|一定要|只能|只需)[^。!?\n我]{0,12}(?:给出?|打出?|评|输出|回答|回复|返回|选择|填写?|答)"
        rf"[^。!?\n我]{{0,8}}?{_VERDICT_ZH}{_END_ZH}",
        r"(?:^|[。,;:!?\n\"'”])\s*只?(?:输出|回答|返回|回复)(?::|数字|标签|单词|等级|评分|一个)*\s*:?\s*"
        + _VERDICT_ZH
        + _END_ZH,
        r"用户(?:对[^。!?\n]{0,8})?(?:表示|感到|已经|显然|是)?(?:非常|很|十分|完全|特别)?(?:不)?满意",
        r"(?:正确|真实|最终|真正|实际|标准|唯一)的?(?:标签|结论|等级|级别|判定|评分|判断|评级|类别|分数|意见|评价|得分)"
        r"(?:应该|应当|必须|就)?(?:是|为|[:=])",
        rf"(?:作为|身为)[^。!?\n]{{0,6}}{_RATER_ZH}[^。!?\n]{{0,12}}(?:你|请|必须|应该|应当|需要)",
        r"(?:致|告诉|提醒)(?:评委|裁判|(?:评审|评判|评分|评估|标注|打分)(?:员|者|人|官|模型|助手|系统))",
        r"(?:新的?|更新的?|真正的?|隐藏的?)(?:系统)?(?:指令|指示|规则|提示词|评分标准)\s*(?::|如下|是)",
    ),
    re.MULTILINE | re.IGNORECASE,
)

# --- A verdict on a line of its own at the end, where a judge would write it; a lone digit only in quotes or brackets. -----
BARE_LINE = re.compile(rf"(?<=\n)[ \t]*(?:{_OPEN}{{0,3}}(?:{_WORDS})|{_OPEN}{{1,3}}[1-5]){_CLOSE}{{0,3}}\s*\Z")

# --- What a folded text in lower case must contain for a family to match at all: most texts need no pattern. --------------
_DIGITS = ("0", "1", "2", "3", "4", "5")
NEEDED = {
    "MARKUP": ("<", "[", "(", "{", "#", "*", "=", "--", "system"),
    "SCAFFOLD": (":", "=", ">", "→", "—", "opinion of", "level", "label", "verdict"),
    # A verdict of the judge's, whoever rates, or the user as a third person.
    "RATING_ORDERS": (
        *_DIGITS, "★", "⭐", "zero", "one", "two", "three", "four", "five", "satisf", "positive", "negative", "neutral", "excellent",
        "rejection", "correction", "engagement", "benign", "praise", "approval", "highest", "lowest", "top", "max", "best", "full",
        "worst", "perfect", "useless", "wrong", "unknown", "interesting", "legal", "harmless", "justified", "refusal", "ordinary",
        "thank", "happy", "pleased", "the\nuser", "the user", "judg", "evaluat", "grad", "rater", "rating", "annotator", "label",
        "classif", "assessor", "scor", "reviewer", "reading", "processing", "analy",
    ),
    "OVERRIDES": (
        "instruct", "rule", "guideline", "direction", "directive", "rubric", "criteria", "prompt", "command", "order", "constraint",
        "system", "programming", "training", "description", "policies", "above", "told", "given", "asked", "scale", "grading",
        "scoring", "judging", "evaluation", "definitions",
    ),
}  # fmt: skip
