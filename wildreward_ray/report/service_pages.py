"""The two pages of the reward service: the playground that scores replies in a browser, and the reference of its API."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from wildreward_ray.report.api_reference import reference, title_of
from wildreward_ray.report.markup import Child, Html, el, join, raw
from wildreward_ray.report.page import own_file


def playground_page() -> bytes:
    """`GET /`: a page that posts to `v1/score` and reads `v1/models`, both relative to its own address, and nothing else.

    It holds nothing of the model, so it can be shown to clients without a token; it asks them for one when the service
    answers 401.

    Returns:
        HTML in UTF-8 with everything in it.
    """
    return _document(
        "Reward playground",
        raw(own_file("playground.html")),
        style=own_file("playground.css"),
        script=own_file("playground_form.js") + own_file("playground.js"),
    )


def docs_page(openapi: Mapping[str, Any]) -> bytes:
    """`GET /docs`: the API reference of an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.0), without scripts.

    Args:
        openapi: the document; parts of it that are absent are left out of the page.

    Returns:
        HTML in UTF-8 with everything in it.
    """
    return _document(
        title_of(openapi), reference(openapi), style=own_file("playground.css") + own_file("api_reference.css")
    )


def _document(title: str, body: Child, *, style: str, script: str = "") -> bytes:
    # The policy is written here as well as in the reply's header: only our own script runs, even in a saved copy.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'; connect-src 'self'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("title", title),
        # Without one, browsers ask the service for /favicon.ico.
        raw('<link rel="icon" href="data:,"/>'),
        el("style", raw(own_file("page.css") + style)),
    )
    whole: Html = el("body", el("main", body), el("script", raw(script)) if script else None)
    return join(raw("<!DOCTYPE html>\n"), el("html", head, whole, lang="en"), raw("\n")).encode()
