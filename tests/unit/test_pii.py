"""Personal data is found as people write it, and numbers, versions and code are left alone."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from wildreward_ray.core.errors import UserError
from wildreward_ray.feedback.pii import ENTITIES, PLACEHOLDERS, Finding, PiiFinder


@pytest.fixture(scope="module")
def finder() -> PiiFinder:
    return PiiFinder(ENTITIES)


PERSONAL = [
    ("EMAIL_ADDRESS", "write to ", "anna.smith+work@mail.example.co.uk", " about the invoice"),
    ("EMAIL_ADDRESS", "请发邮件到", "zhang@example.cn", "告诉他明天开会"),
    ("EMAIL_ADDRESS", "Kontakt: ", "info@müller.de", ""),
    ("EMAIL_ADDRESS", "mail me (", "bob@example.com", ").Thanks"),
    ("EMAIL_ADDRESS", "", "bob@example.com", ".Thanks for the help"),
    ("EMAIL_ADDRESS", "[a](mailto:", "bob@example.com", ")"),
    ("PHONE_NUMBER", "call me at ", "+49 170 1234567", " after six"),
    ("PHONE_NUMBER", "my number is ", "(415) 555-0132", " if you need it"),
    ("PHONE_NUMBER", "fax ", "+1 (650) 253-0000", " 2 times"),
    ("PHONE_NUMBER", "phone:", "212-555-0173", "."),
    ("PHONE_NUMBER", "我的电话是", "13812345678", "，请写一条短信给他"),
    ("PHONE_NUMBER", "座机", "010-12345678", "转2"),
    ("PHONE_NUMBER", "ring ", "020 7946 0958", " in London"),
    ("PHONE_NUMBER", "tel: ", "06 12 34 56 78", " le soir"),
    ("PHONE_NUMBER", "M: ", "+44 (0)7792 959309", "\n"),
    ("CREDIT_CARD", "charge ", "4111 1111 1111 1111", " today"),
    ("CREDIT_CARD", "amex ", "371449635398431", ""),
    ("IBAN_CODE", "pay to ", "DE89 3704 0044 0532 0130 00", " BANK"),
    ("IBAN_CODE", "IBAN:", "GB29NWBK60161331926819", ""),
    ("IP_ADDRESS", "it came from ", "93.184.216.34", ", I think"),
    ("IP_ADDRESS", "peer ", "2a00:1450:4001:81b::200e", " is up"),
    ("US_SSN", "ssn ", "536-22-1834", ""),
]
HARMLESS = [
    "npm install lodash@4.17.21 fails",
    "icon@2x.png and app@1.0.0.zip and @media print and @app.route('/a.b')",
    "user@host:~$ ls",
    "git clone git@github.com:group/project.git",
    "https://user@build.example.com/job and deploy@example.com:/srv/www",
    "ISBN 978-3-16-148410-0 or 0-306-40615-2",
    "2023-11-05 10:22:33 and 05-11-2023 10:22 and 01 02 2023 10",
    "3.14159265358979 and 0.13812345678 and 1680000000",
    "epoch 1680000000000 in milliseconds",
    "order 112-3456789-1234567, id 550e8400-e29b-41d4-a716-446655440000",
    "$1,250,000.00 and 12.5 percent from 1939-1945",
    "the server 192.168.100.100 and 127.0.0.1 do not answer, section 1.2.3.4",
    "Chrome/1.20.33.44 or v1.20.33.44",
    "std::vector<int> and a::b and 10:22:33",
    "commit 13812345678abcdef and sku A13812345678 and 138123456789",
    "matrix 100 200 300 400 500 600 700 and 01 02 03 04 05 06 07 08",
    "4111 1111 1111 1112 and 1234567812345670",
    "DE89 3704 0044 0532 0130 01",
    "000-22-1234 and 123-45-678",
]


@pytest.mark.parametrize(("entity", "before", "data", "after"), PERSONAL)
def test_personal_data_is_found_with_its_exact_borders(
    finder: PiiFinder, entity: str, before: str, data: str, after: str
) -> None:
    text = before + data + after
    assert finder.find(text) == [Finding(len(before), len(before) + len(data), entity)]
    assert finder.redact(text) == (before + PLACEHOLDERS[entity] + after, [entity])


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_personal_data_is_left_alone(finder: PiiFinder, text: str) -> None:
    assert finder.find(text) == []
    assert finder.redact(text) == (text, [])


def test_every_kind_has_a_case_here() -> None:
    assert {entity for entity, *_ in PERSONAL} == set(ENTITIES)


def test_data_is_found_anywhere_in_a_long_text(finder: PiiFinder) -> None:
    filler = "The harbour lay still in 1939, and 3 ships of 12,000 tons left at 10:22:33. " * 1000
    text = f"{filler}mail bob@example.com {filler}call +49 170 1234567 {filler}"
    redacted, kinds = finder.redact(text)
    assert redacted == f"{filler}mail [EMAIL] {filler}call [PHONE] {filler}"
    assert kinds == ["EMAIL_ADDRESS", "PHONE_NUMBER"]


def test_each_kind_is_named_once_in_the_order_of_the_text(finder: PiiFinder) -> None:
    text = "+49 170 1234567, a@example.com, b@example.com, +49 170 1234567"
    assert finder.redact(text) == ("[PHONE], [EMAIL], [EMAIL], [PHONE]", ["PHONE_NUMBER", "EMAIL_ADDRESS"])


def test_findings_do_not_overlap_and_the_surest_longest_one_stays(finder: PiiFinder) -> None:
    # The account number in this IBAN is a card number as well.
    text = "GB33BUKB20201555555555"
    assert [finding.entity for finding in finder.find(text)] == ["IBAN_CODE"]
    found = finder.find("a@example.com 415-555-0132 4111-1111-1111-1111")
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert len(found) == 3


def test_only_the_chosen_kinds_are_looked_for() -> None:
    text = "bob@example.com or +49 170 1234567"
    assert PiiFinder(("PHONE_NUMBER",)).redact(text)[0] == "bob@example.com or [PHONE]"
    assert PiiFinder(()).find(text) == []


def test_unknown_kind_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"'EMAIL'.*'EMAIL_ADDRESS'.*pii-entities"):
        PiiFinder(("EMAIL",))


def test_the_network_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(PiiFinder(("EMAIL_ADDRESS",)).find("bob@example.co.uk, eve@example.nosuchsuffix")) == 1


def test_a_finder_loads_no_model_library_and_leaves_them_importable() -> None:
    code = (
        "import sys\n"
        "from wildreward_ray.feedback.pii import PiiFinder\n"
        "assert 'presidio_analyzer' not in sys.modules\n"
        "assert PiiFinder().find('bob@example.com')\n"
        "print(*[name for name in ('torch', 'transformers') if name in sys.modules])\n"
        "import torch\n"
        "assert torch.zeros(1).item() == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "1 ",
        "+",
        "a@",
        "a.",
        "@a.",
        "a@a.",
        "+1 ",
        "12 ",
        "0",
        "(",
        "1-",
        "AB12",
        "1:",
        "1.",
        "13812345678 ",
        "a@b.com ",
    ],
)
def test_megabytes_of_hostile_text_take_no_more_than_seconds(finder: PiiFinder, piece: str) -> None:
    text = piece * (500_000 // len(piece))
    started = time.monotonic()
    finder.find(text)
    assert time.monotonic() - started < 10
