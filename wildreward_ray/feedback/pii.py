"""Personal data in texts: where it stands, and the text with placeholders in its place.

Presidio's pattern recognizers (https://microsoft.github.io/presidio/supported_entities/) decide; they know checksums, public
suffixes and each country's phone numbers. They are slow and take much for personal that isn't (a timestamp can be a valid phone
number), so they are only asked about spans that are written the way people write such data.
"""

from __future__ import annotations

import bisect
import ipaddress
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from wildreward_ray.core.errors import UserError, nearest

if TYPE_CHECKING:
    from presidio_analyzer import EntityRecognizer

# Presidio's names, and what stands in a redacted text.
PLACEHOLDERS: Final = {
    "EMAIL_ADDRESS": "[EMAIL]",
    "PHONE_NUMBER": "[PHONE]",
    "CREDIT_CARD": "[CREDIT_CARD]",
    "IBAN_CODE": "[IBAN]",
    "IP_ADDRESS": "[IP_ADDRESS]",
    "US_SSN": "[US_SSN]",
}
ENTITIES: Final = tuple(PLACEHOLDERS)


@dataclass(frozen=True, slots=True)
class Finding:
    """Characters [start, end) of a text hold personal data of the kind `entity`."""

    start: int
    end: int
    entity: str


@dataclass(frozen=True, slots=True)
class _Shape:
    """A way of writing one kind of personal data.

    `possible` looks at the whole text, quickly; `pattern` marks candidates; `plausible` looks at one of them.
    """

    entity: str
    possible: Callable[[_Traits], bool]
    pattern: re.Pattern[str]
    plausible: Callable[[str], bool]
    recognizer: str
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Traits:
    """What can be told of a text in microseconds. Most texts rule out every shape by it."""

    text: str
    digits: int
    # Seven digits in a row, or with no more than punctuation in between.
    long_number: bool

    @staticmethod
    def of(text: str) -> _Traits:
        raw = text.encode("utf-8", "surrogatepass")
        digits = len(raw) - len(raw.translate(None, b"0123456789"))
        return _Traits(text, digits, digits >= 7 and _LONG_NUMBER.search(text) is not None)


def _issued(number: str) -> bool:
    """Whether a card issuer has numbers of this beginning and length: one digit run in ten passes the checksum alone.

    Source: https://en.wikipedia.org/wiki/Payment_card_number#Issuer_identification_number_(IIN)
    """
    return _ISSUED.fullmatch(re.sub("[ -]", "", number)) is not None


def _public_address(address: str) -> bool:
    """Whether an address can belong to somebody: not private, reserved or multicast. 1.2.3.4 is rather a section or a version."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6:
        return ip in _GLOBAL_UNICAST and ip.is_global
    return ip.is_global and not ip.is_multicast and len(address) > len("1.2.3.4")


def _anything(_: str) -> bool:
    return True


_LONG_NUMBER = re.compile(r"[0-9](?:[ ().-]{0,3}[0-9]){6}")
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15})|(?:5[1-5]\d\d|6011|6[45]\d\d|62\d\d|35[2-8]\d)\d{12}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")

# Latin, Greek and Cyrillic letters and digits: Chinese text runs into an address without a space, and isn't part of it.
_LETTER = r"A-Za-z0-9\u00c0-\u024f\u0370-\u052f"
# A top-level domain is made of letters in one case: `lodash@4.17.21` is a package, and in `bob@example.com.Thanks` a space is
# missing. `https://user@host.com`, `git@host.com:group/project` and `deploy@host.com:/srv` are logins on machines. The possessive
# runs keep a megabyte without spaces linear.
_EMAIL = re.compile(
    rf"(?<![{_LETTER}._%+-])(?<!//)(?!git@)[{_LETTER}._%+-]++@(?![0-9.]+\.)(?:[{_LETTER}-]{{1,63}}+\.){{1,8}}"
    rf"(?:[a-z]{{2,24}}|[A-Z]{{2,24}}|Com|Net|Org)(?![{_LETTER}_]|:[~/])"
)
# What may stand next to a number without making it a part of an identifier, a path, a decimal or a longer number.
_BEFORE = r"(?<![A-Za-z0-9_.+/#-])"
_AFTER = r"(?![A-Za-z0-9_]|[.,:-][0-9])"
_INTERNATIONAL = re.compile(r"(?<![A-Za-z0-9_.+)])\+ ?[1-9](?:[ ().-]{0,3}[0-9]){6,14}" + _AFTER)
_CHINESE_MOBILE = re.compile(_BEFORE + r"(?:86[ -]?)?1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}" + _AFTER)
_NORTH_AMERICAN = re.compile(
    _BEFORE + r"(?:\+?1[ .-]?)?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}" + _AFTER
)
# National numbers of other countries: a leading zero, an area code set apart, and no date.
_TRUNK_ZERO = re.compile(
    _BEFORE
    + r"(?![0-3][0-9][ -][0-3][0-9][ -][12][0-9]{3})(?:\(0[1-9][0-9]{0,3}\)|0[1-9][0-9]{0,3}[ -])(?:[ -]?[0-9]){6,9}"
    + r"(?![ -]?[0-9])"
    + _AFTER
)
_TRUNK_ZERO_REGIONS = ("GB", "DE", "FR", "CN", "IN", "JP", "AU", "NL", "TR", "PK")
_CARD = re.compile(_BEFORE + r"[3-6](?:[ -]?[0-9]){12,18}" + _AFTER)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
# Not after `Product/`, where it is a version.
_IPV4 = re.compile(r"(?<![A-Za-z0-9_.-])(?<![A-Za-z]/)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![A-Za-z0-9_-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![A-Za-z0-9_:])")
_SSN = re.compile(_BEFORE + r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}" + _AFTER)


def _phone(pattern: re.Pattern[str], regions: tuple[str, ...], leniency: int = 1) -> _Shape:
    """A way of writing phone numbers. Leniency 1: a valid number; 2: grouped as the country groups its numbers, too.

    Source: https://github.com/daviddrysdale/python-phonenumbers, `Leniency`.
    """
    options = {"supported_regions": regions, "leniency": leniency}
    return _Shape("PHONE_NUMBER", lambda t: t.long_number, pattern, _anything, "PhoneRecognizer", options)


_SHAPES: Final = (
    _Shape("EMAIL_ADDRESS", lambda t: "@" in t.text, _EMAIL, _anything, "EmailRecognizer", {}),
    # A number that begins with + names its country; the region is only a default.
    _phone(_INTERNATIONAL, ("US",)),
    _phone(_CHINESE_MOBILE, ("CN",)),
    _phone(_NORTH_AMERICAN, ("US",)),
    _phone(_TRUNK_ZERO, _TRUNK_ZERO_REGIONS, leniency=2),
    _Shape("CREDIT_CARD", lambda t: t.long_number and t.digits >= 13, _CARD, _issued, "CreditCardRecognizer", {}),
    _Shape("IBAN_CODE", lambda t: t.digits >= 7, _IBAN, _anything, "IbanRecognizer", {}),
    _Shape(
        "IP_ADDRESS",
        lambda t: t.digits >= 5 and t.text.count(".") >= 3,
        _IPV4,
        _public_address,
        "IpRecognizer",
        {},
    ),
    _Shape(
        "IP_ADDRESS",
        lambda t: t.digits >= 3 and t.text.count(":") >= 2,
        _IPV6,
        _public_address,
        "IpRecognizer",
        {},
    ),
    _Shape("US_SSN", lambda t: t.long_number and t.digits >= 9, _SSN, _anything, "UsSsnRecognizer", {}),
)


class PiiFinder:
    """Finds and replaces personal data. Loads presidio when it is made; keep one per process.

    Names and postal addresses are not looked for: that takes a language model for each language.

    Args:
        entities: which of `ENTITIES` to look for.

    Raises:
        UserError: a name that isn't one of `ENTITIES`.
    """

    def __init__(self, entities: Sequence[str] = ENTITIES) -> None:
        for name in entities:
            if name not in ENTITIES:
                raise UserError(
                    f"{name!r} is no kind of personal data that can be found",
                    flag="--quality.pii-entities",
                    hint=nearest(name, ENTITIES),
                )
        chosen = [shape for shape in _SHAPES if shape.entity in entities]
        self._shapes = list(zip(chosen, _recognizers(chosen), strict=True))

    def find(self, text: str) -> list[Finding]:
        """What was found, in the order of the text. Where two overlap, the more certain one stays, then the longer one."""
        traits = _Traits.of(text)
        found: list[tuple[float, Finding]] = []
        for shape, recognizer in self._shapes:
            if shape.possible(traits):
                found += _confirmed(text, shape, recognizer)
        if not found:
            return []
        found.sort(key=lambda item: (-item[0], item[1].start - item[1].end, item[1].start))
        kept: list[Finding] = []
        for _, finding in found:
            # Those kept so far lie apart and in order: only the neighbours can overlap.
            place = bisect.bisect_left(kept, finding.start, key=lambda other: other.start)
            after_previous = place == 0 or kept[place - 1].end <= finding.start
            if after_previous and (place == len(kept) or finding.end <= kept[place].start):
                kept.insert(place, finding)
        return kept

    def redact(self, text: str) -> tuple[str, list[str]]:
        """The text with `[EMAIL]`, `[PHONE]`, … in place of what was found, and the kinds found, one each, in the text's order."""
        findings = self.find(text)
        pieces, position = [], 0
        for finding in findings:
            pieces += [text[position : finding.start], PLACEHOLDERS[finding.entity]]
            position = finding.end
        return "".join([*pieces, text[position:]]), list(dict.fromkeys(finding.entity for finding in findings))


def _confirmed(text: str, shape: _Shape, recognizer: EntityRecognizer) -> Iterator[tuple[float, Finding]]:
    """(certainty in (0, 1], finding) of each candidate in which presidio finds something."""
    answers: dict[str, list[tuple[float, int, int]]] = {}
    for match in shape.pattern.finditer(text):
        candidate = match.group()
        # Logs and tables repeat the same few numbers thousands of times.
        if candidate not in answers:
            results = recognizer.analyze(candidate, [], None) if shape.plausible(candidate) else []
            answers[candidate] = [(r.score, r.start, r.end) for r in results]
        for score, start, end in answers[candidate]:
            yield score, Finding(match.start() + start, match.start() + end, shape.entity)


def _recognizers(shapes: Sequence[_Shape]) -> list[EntityRecognizer]:
    with _hidden("torch", "transformers"):
        from presidio_analyzer import predefined_recognizers

    made = []
    for shape in shapes:
        recognizer = getattr(predefined_recognizers, shape.recognizer)(**shape.options)
        if shape.entity == "EMAIL_ADDRESS":
            recognizer.validate_result = _offline_suffixes()
        made.append(recognizer)
    return made


def _offline_suffixes() -> Callable[[str], bool]:
    """A test for a public suffix. Presidio's own would fetch the list of suffixes from the network in every process."""
    import tldextract

    extract = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    def has_public_suffix(address: str) -> bool:
        parts = extract(address)
        return bool(parts.domain and parts.suffix)

    return has_public_suffix


@contextmanager
def _hidden(*modules: str) -> Iterator[None]:
    """Makes imports of packages that aren't loaded yet fail.

    Presidio loads torch and transformers wherever they are installed, for language models that are not used here; it does
    without them where their import fails. That is 400 MB and five seconds less for each process.
    """
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
