"""The service's pages: whole in one file, deaf to hostile text, and a reference that leaves out nothing of the document."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from wildreward_ray.report.page import own_file
from wildreward_ray.report.service_pages import docs_page, playground_page
from wildreward_ray.stages import serve_openapi

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"\x00\u202e"
SCHEMAS: dict[str, Any] = {
    "Request": {
        "type": "object",
        "description": "What is asked for.\n\nAttributes:\n    items: what to score,\n        one `reply` each.\n    kind: how.",
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Node"}, "minItems": 1},
            "kind": {"anyOf": [{"enum": ["fast", "exact"]}, {"type": "null"}], "default": None},
            "weight": {"type": ["number", "null"], "exclusiveMinimum": 0},
        },
    },
    "Node": {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string", "description": "a text"},
            "children": {"type": "array", "items": {"$ref": "#/components/schemas/Node"}},
        },
    },
}
QUOTED = {"items": [{"text": 'it\'s $HOME `id` "!" \\ \n è'}]}


def document(**changes: Any) -> dict[str, Any]:
    """A small document in which an object holds itself and replies are shared."""
    operation = {
        "summary": "Score it.",
        "parameters": [{"$ref": "#/components/parameters/Limit"}],
        "requestBody": {
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}, "example": QUOTED}}
        },
        "responses": {"200": {"description": "Done."}, "429": {"$ref": "#/components/responses/429"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "A service", "version": "1.2", "description": "Says `hello`."},
        "paths": {"/v1/score": {"post": {**operation, **changes}}},
        "components": {
            "schemas": SCHEMAS,
            "parameters": {"Limit": {"name": "X-Limit", "in": "header", "schema": {"type": "integer"}}},
            "responses": {"429": {"description": "Too many.", "headers": {"Retry-After": {"description": "seconds"}}}},
        },
    }


class Page(HTMLParser):
    """What a browser makes of a page: its elements, the texts outside style and script, and what they link to."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.pieces: list[str] = []
        self.examples: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.tags.pop()
        self.tags.append(f"{tag}/")

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["pre"] and data.startswith("curl"):
            self.examples.append(data)
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.attributes if found == name]


def real_document(secured: bool = True) -> dict[str, Any]:
    from wildreward_ray.core.protocols import DIALECTS

    return serve_openapi.openapi(DIALECTS, secured=secured)


@pytest.mark.parametrize("page", [playground_page(), docs_page(document())], ids=["playground", "docs"])
def test_a_page_loads_nothing_from_elsewhere(page: bytes) -> None:
    whole = Page(page)
    assert whole.values("src") == []
    own = ("#", "./", "docs", "openapi.json", "data:,")
    assert [link for link in whole.values("href") if not link.startswith(own)] == []
    assert not re.search(r"\burl\(|@import", page.decode())


def test_the_playgrounds_policy_lets_only_its_own_script_run_and_reach_only_its_service() -> None:
    page = playground_page().decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    allowed = policy[1].replace("&#x27;", "'").split("; ")
    assert f"script-src 'sha256-{digest}'" in allowed
    assert {"default-src 'none'", "connect-src 'self'"} <= set(allowed)


def test_the_playgrounds_script_never_makes_markup_or_code_of_text() -> None:
    script = own_file("playground_form.js") + own_file("playground.js")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(|srcdoc|DOMParser", script
    )
    assert not re.search("</?script|<!--", script, re.IGNORECASE)


def test_every_element_that_the_script_asks_for_is_there_and_every_field_has_a_label() -> None:
    root = ElementTree.fromstring(f"<body>{own_file('playground.html')}</body>")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    script = own_file("playground_form.js") + own_file("playground.js")
    asked = set(re.findall(r'\bat\("([^"]+)"\)', script))
    assert len(asked) > 20
    assert asked <= set(ids)
    named = {label.get("for") for label in root.iter("label")}
    assert [
        field.get("id") for tag in ("input", "textarea") for field in root.iter(tag) if field.get("id") not in named
    ] == []
    for name in ("aria-controls", "aria-describedby", "aria-labelledby"):
        assert {target for e in root.iter() for target in (e.get(name) or "").split()} <= set(ids)


def test_the_reference_shows_calls_fields_limits_and_shared_replies() -> None:
    text = Page(docs_page(document())).text
    for said in (
        "POST /v1/score", "Score it.", "X-Limit", "Too many.", "Retry-After", "Says hello", "items required",
        "list of Node , at least 1", "what to score, one reply each.", "how.", '"fast" or "exact" or null',
        "number or null, more than 0",
    ):  # fmt: skip
        assert said in text, said
    assert "Attributes:" not in text


def test_every_link_within_the_reference_leads_somewhere_and_nowhere_twice() -> None:
    for given in (document(), real_document()):
        page = Page(docs_page(given))
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(ids)


def test_the_reference_of_the_real_service_names_every_path_object_and_error() -> None:
    given = real_document()
    page = Page(docs_page(given))
    assert len(page.examples) == sum(len(methods) for methods in given["paths"].values())
    for path in given["paths"]:
        assert path in page.text
    for name, schema in given["components"]["schemas"].items():
        assert f"type-{name}" in page.values("id")
        assert all(field in page.text for field in schema.get("properties", {}))
    assert {f"reply-{status}" for status in given["components"]["responses"]} <= set(page.values("id"))


def test_only_an_open_service_links_its_document() -> None:
    assert "openapi.json" not in Page(docs_page(real_document(secured=True))).values("href")
    assert "openapi.json" in Page(docs_page(real_document(secured=False))).values("href")


def test_an_example_put_into_a_shell_sends_the_body_as_it_is_written() -> None:
    (example,) = Page(docs_page(document())).examples
    shell = f'curl() {{ printf "%s\\0" "$@"; }}\nWILDREWARD_URL=http://h:1\n{example}'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, timeout=10)
    arguments = done.stdout.decode().split("\0")
    assert "http://h:1/v1/score" in arguments
    assert json.loads(arguments[arguments.index("--data-binary") + 1]) == QUOTED


def test_the_token_is_sent_where_a_call_needs_one_and_never_written() -> None:
    given = real_document()
    examples = Page(docs_page(given)).examples
    secured = [example for example in examples if '"Authorization: Bearer $WILDREWARD_TOKEN"' in example]
    assert len(examples) - len(secured) == len([p for p in given["paths"] if p in ("/healthz", "/readyz")]) == 2


def test_without_an_example_one_is_made_that_holds_what_is_required() -> None:
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}}}
    (example,) = Page(docs_page(document(requestBody=body))).examples
    assert json.loads(example.partition("--data-binary '")[2].rstrip("'")) == {"items": [{"text": "…"}]}


def test_hostile_words_in_a_document_are_shown_and_do_nothing() -> None:
    given = document(summary=HOSTILE, description=HOSTILE, responses={HOSTILE: {"description": HOSTILE}})
    given["info"] = {"title": HOSTILE, "description": HOSTILE, "version": HOSTILE}
    given["components"]["schemas"] = {HOSTILE: {"description": HOSTILE, "properties": {HOSTILE: {"const": HOSTILE}}}}
    page = Page(docs_page(given))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_a_document_that_lacks_everything_gives_a_page() -> None:
    assert "API reference" in Page(docs_page({})).text
