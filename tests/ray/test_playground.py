"""The playground in a real browser on a real service: its numbers are the API's, hostile text stays text, errors are shown."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.ray.helpers import free_port
from wildreward_ray.core.config.serve import ServeConfig
from wildreward_ray.stages.serve import service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Locator, Page, Route

pytest.importorskip("playwright.sync_api", reason="the Python package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH")

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
CONVERSATION = [
    {"role": "user", "content": "How do I boil an egg?"},
    {"role": "assistant", "content": "In water."},
    {"role": "user", "content": "For how long?"},
]
REPLIES = ["Seven minutes for a soft yolk, ten for a firm one.", "Eggs are laid by hens.", "No.", ""]
# Anything of it that ran would ask another origin, open a dialog or leave a mark.
HOSTILE = (
    '<img src=https://elsewhere.invalid/x onerror="window.ran=1"></script><script>window.ran=1;alert(1)</script>'
    "<svg onload='window.ran=1'>${window.ran=1} javascript:alert(1) \u202e\u2028 $(touch x) `id` ' '' \\ \\' \" ! %s\nnext line"
)
SAME = 1e-3


@pytest.fixture(scope="module")
def service_url(ray_session: None, tiny_reward_model: str) -> Iterator[str]:
    settings = {"model": tiny_reward_model, "engine": "transformers", "port": free_port()}
    with service(ServeConfig.load(None, settings)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser, service_url: str) -> Iterator[Page]:
    """The playground, which afterwards must have stayed on its service and run nothing but its own script."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    requests: list[str] = []
    surprises: list[str] = []
    context.on("request", lambda request: requests.append(request.url))

    def dismiss(dialog: Dialog) -> None:
        surprises.append(dialog.message)
        dialog.dismiss()

    opened.on("pageerror", lambda error: surprises.append(str(error)))
    opened.on("dialog", dismiss)
    opened.goto(f"{service_url}/")
    yield opened
    assert opened.evaluate("typeof window.ran") == "undefined"
    assert surprises == []
    assert len(requests) > 1
    assert [url for url in requests if not url.startswith((f"{service_url}/", "data:"))] == []
    context.close()


def write(page: Page, messages: list[dict[str, str]], replies: list[str]) -> None:
    """Fill the form by hand."""
    fields, answers = page.locator("#messages .entry"), page.locator("#replies .entry")
    resize(fields, len(messages), page.get_by_role("button", name="Add a message"))
    resize(answers, len(replies), page.get_by_role("button", name="Add a reply"))
    for i, message in enumerate(messages):
        fields.nth(i).locator("select").select_option(message["role"])
        fields.nth(i).locator("textarea").fill(message["content"])
    for i, reply in enumerate(replies):
        answers.nth(i).locator("textarea").fill(reply)


def resize(entries: Locator, count: int, add: Locator) -> None:
    for _ in range(count, entries.count()):
        entries.last.get_by_role("button").click()
    for _ in range(entries.count(), count):
        add.click()


def written(page: Page) -> tuple[list[dict[str, str]], list[str]]:
    """What the form holds."""
    messages = [
        {"role": entry.locator("select").input_value(), "content": entry.locator("textarea").input_value()}
        for entry in page.locator("#messages .entry").all()
    ]
    return messages, [field.input_value() for field in page.locator("#replies textarea").all()]


def score(page: Page) -> dict[str, Any]:
    """Press Score and wait until the page has shown what came of it; what the service replied."""
    with page.expect_response("**/v1/score") as caught:
        page.get_by_role("button", name="Score", exact=True).click()
    page.locator("#score:enabled").wait_for()
    body: dict[str, Any] = caught.value.json()
    return body


def asked(replies: list[str]) -> dict[str, Any]:
    return {"items": [{"messages": [*CONVERSATION, {"role": "assistant", "content": reply}]} for reply in replies]}


def ranking(page: Page) -> list[tuple[int, float]]:
    """(number of the reply, score as it can be read), from the first row to the last."""
    page.locator("#results").wait_for()
    rows = page.locator("#ranking tr").all()
    return [(int(row.get_attribute("data-reply") or 0), float(row.locator(".score").inner_text())) for row in rows]


def answer(status: int, body: Any, **headers: str) -> Callable[[Route], None]:
    """A stand-in for the service's reply, for what a healthy service doesn't say."""
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda route: route.fulfill(status=status, body=text, headers=headers, content_type="application/json")


def test_every_reply_is_ranked_by_the_score_that_the_api_gives(page: Page, service_url: str) -> None:
    write(page, CONVERSATION, REPLIES)
    reply = score(page)
    found = ranking(page)
    scores = [entry["score"] for entry in reply["scores"]]
    assert sorted(number for number, _ in found) == [1, 2, 3, 4]
    assert [shown for _, shown in found] == pytest.approx(sorted(scores, reverse=True), abs=5.1e-5)
    assert all(shown == pytest.approx(scores[number - 1], abs=5.1e-5) for number, shown in found)
    direct = httpx.post(f"{service_url}/v1/score", json=asked(REPLIES), timeout=60).json()
    assert scores == pytest.approx([entry["score"] for entry in direct["scores"]], abs=SAME)
    for row, (number, _) in zip(page.locator("#ranking tr").all(), found, strict=True):
        probs = reply["scores"][number - 1]["level_probs"]
        shares = [f"{k}: {100 * p:.1f} %" for k, p in enumerate(probs, 1)]
        # JavaScript rounds halves of the exact binary value as Python does; one unit of the last digit is let pass.
        texts = row.locator(".shares li").all_inner_texts()
        assert [float(text.split()[1]) for text in texts] == pytest.approx(
            [float(share.split()[1]) for share in shares], abs=0.11
        )
    assert reply["version"] in page.locator("#served").inner_text()
    page.locator("#model", has_text=reply["version"]).wait_for()


def test_results_can_be_read_as_a_table_and_scored_by_keyboard(page: Page) -> None:
    write(page, CONVERSATION, REPLIES[:2])
    page.get_by_label("Reply 2", exact=True).press("Control+Enter")
    page.locator("#results").wait_for()
    table = page.get_by_role("table")
    assert table.get_by_role("columnheader").count() == 4
    assert table.get_by_role("row").count() == 3
    assert table.get_by_role("rowheader").count() == 2
    meter = table.get_by_role("meter").first
    assert float(meter.get_attribute("aria-valuenow") or 0) == pytest.approx(ranking(page)[0][1], abs=5.1e-5)
    assert "level 1 " in (table.get_by_role("img").first.get_attribute("aria-label") or "")


def test_a_hostile_conversation_is_shown_as_it_was_written_and_runs_nothing(page: Page) -> None:
    messages = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}]
    write(page, messages, [HOSTILE, "fine"])
    score(page)
    row = page.locator('#ranking tr[data-reply="1"]')
    summary = row.locator("summary")
    if summary.count():
        summary.click()
    assert row.locator(".reply-text").text_content() == HOSTILE
    page.reload()
    page.locator("#history button").first.click()
    assert written(page) == (messages, [HOSTILE, "fine"])
    assert page.locator("main img, main svg, main script").count() == 0


def test_a_hostile_service_runs_nothing_either(page: Page) -> None:
    write(page, CONVERSATION, ["one"])
    page.route("**/v1/score", answer(422, {"detail": HOSTILE, "code": HOSTILE, "field": HOSTILE}))
    score(page)
    assert HOSTILE.split("\n")[0] in (page.locator("#failure").text_content() or "")
    page.unroute("**/v1/score")
    entry = {"score": 2.0, "level_probs": [0.5, 0.25, 0.25], "p_gt": [0.5, 0.25]}
    page.route("**/v1/score", answer(200, {"model": HOSTILE, "version": HOSTILE, "scores": [entry]}))
    score(page)
    assert HOSTILE.split("\n")[0] in (page.locator("#served").text_content() or "")


def test_a_refused_request_shows_detail_code_and_field_and_no_scores(page: Page) -> None:
    write(page, CONVERSATION, REPLIES)
    score(page)
    write(page, [*CONVERSATION, {"role": "assistant", "content": "two in a row"}], REPLIES)
    refused = score(page)
    assert refused["field"].startswith("items[0]")
    alert = page.get_by_role("alert").filter(has_text="422")
    assert refused["detail"] in alert.inner_text()
    # One by one: the detail may repeat the field.
    assert {refused["code"], refused["field"]} <= set(alert.locator("dd").all_inner_texts())
    # Those of the request before would look like this one's.
    assert page.locator("#results").is_hidden()


def test_a_field_marks_the_message_or_reply_that_it_names(page: Page) -> None:
    write(page, CONVERSATION, REPLIES)
    marked = page.locator(".entry.blamed textarea")
    for field, label in (
        ("items[2].messages[3].content", "Reply 3"),
        ("items[0].messages[1].role", "Message 2"),
        ("items[3]", "Reply 4"),
        ("items[0]", None),
        (HOSTILE, None),
    ):
        page.route("**/v1/score", answer(422, {"detail": "wrong", "code": "x", "field": field}))
        score(page)
        page.locator("#failure").wait_for()
        assert [entry.get_attribute("aria-label") for entry in marked.all()] == ([label] if label else []), field
        page.unroute("**/v1/score")


def test_a_busy_service_says_when_to_come_again(page: Page) -> None:
    write(page, CONVERSATION, REPLIES)
    page.route("**/v1/score", answer(503, {"detail": "no engine", "code": "unavailable"}, **{"Retry-After": "7"}))
    score(page)
    assert "may succeed in 7 s" in page.locator("#failure").inner_text()
    assert page.get_by_role("button", name="Score", exact=True).is_enabled()


@pytest.mark.parametrize(
    "body",
    [
        "<html>bad gateway</html>",
        '{"model": "m", "version": "v", "scores": []}',
        '{"model": "m", "version": "v", "scores": [{"score": null, "level_probs": [0.5, 0.5], "p_gt": [0.5]}]}',
        "null",
    ],
)
def test_a_reply_without_every_score_is_an_error(page: Page, body: str) -> None:
    write(page, CONVERSATION, ["one"])
    page.route("**/v1/score", answer(200, body))
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator("#failure").wait_for()
    assert "The service's reply is not" in page.locator("#failure").inner_text()
    assert page.locator("#results").is_hidden()


def test_what_was_scored_comes_back_on_a_click_even_after_a_reload(page: Page) -> None:
    write(page, CONVERSATION, REPLIES)
    score(page)
    first = ranking(page)
    write(page, CONVERSATION[2:], ["another"])
    score(page)
    second = ranking(page)
    page.reload()
    entries = page.locator("#history button")
    assert entries.count() == 2
    entries.nth(1).click()
    assert ranking(page) == first
    assert written(page) == (CONVERSATION, REPLIES)
    entries.nth(0).click()
    assert ranking(page) == second
    page.get_by_role("button", name="Clear the list").click()
    page.reload()
    assert entries.count() == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_command_gives_the_same_scores(page: Page) -> None:
    write(page, [{"role": "user", "content": HOSTILE}], [HOSTILE, 'it\'s "fine"\n\n$HOME', ""])
    reply = score(page)
    page.get_by_role("button", name="Copy as curl").click()
    command = page.locator("#curl").text_content() or ""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    scores = [entry["score"] for entry in json.loads(done.stdout)["scores"]]
    assert scores == pytest.approx([entry["score"] for entry in reply["scores"]], abs=SAME)


def test_a_token_is_asked_for_when_one_is_needed_sent_with_requests_and_never_written(page: Page) -> None:
    secret = "open-sesame'$(id)"

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == f"Bearer {secret}":
            route.continue_()
        else:
            answer(401, {"detail": "a valid token is needed", "code": "unauthorized"})(route)

    assert page.locator("#access").is_hidden()
    page.route("**/v1/*", guard)
    write(page, CONVERSATION, REPLIES)
    score(page)
    for given in ("wrong", secret):
        field = page.get_by_label("bearer token")
        field.fill(given)
        with page.expect_response("**/v1/score"):
            field.press("Enter")
        if given == "wrong":
            page.get_by_text("The token was not accepted").wait_for()
    assert len(ranking(page)) == len(REPLIES)
    page.reload()
    page.locator("#history button").first.click()
    assert len(score(page)["scores"]) == len(REPLIES)
    page.get_by_role("button", name="Copy as curl").click()
    assert '"Authorization: Bearer $WILDREWARD_TOKEN"' in (page.locator("#curl").text_content() or "")
    assert secret not in page.content()


PASTED: list[tuple[str, list[dict[str, str]], list[str] | None]] = [
    (json.dumps(CONVERSATION), CONVERSATION, None),
    (json.dumps({"messages": [*CONVERSATION, {"role": "assistant", "content": "Ten."}]}), CONVERSATION, ["Ten."]),
    (
        json.dumps({"history": CONVERSATION[:2], "prompt": CONVERSATION[2]["content"], "response": HOSTILE}),
        CONVERSATION,
        [HOSTILE],
    ),
    (
        "user: How do I boil an egg?\nassistant: In water.\nUser: For how\nlong?\n\nassistant: Ten.\n",
        [*CONVERSATION[:2], {"role": "user", "content": "For how\nlong?"}],
        ["Ten."],
    ),
]


@pytest.mark.parametrize(("text", "messages", "replies"), PASTED, ids=["array", "messages", "triple", "text"])
def test_a_pasted_conversation_fills_the_form(
    page: Page, text: str, messages: list[dict[str, str]], replies: list[str] | None
) -> None:
    write(page, [], ["kept"])
    page.get_by_role("button", name="Paste…").click()
    page.get_by_label("A conversation as JSON or as text").fill(text)
    page.get_by_role("button", name="Use it").click()
    assert written(page) == (messages, replies or ["kept"])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1", "not valid JSON"),
        ('[{"role": "judge", "content": "x"}]', 'messages[0].role is "judge"'),
        ('[{"role": "user", "content": 3}]', "messages[0].content is not a text"),
        ('{"response": "x"}', "neither messages nor a text as prompt"),
        ("hello there", "begins with no role"),
    ],
)
def test_a_paste_that_is_no_conversation_says_why_and_changes_nothing(page: Page, text: str, problem: str) -> None:
    write(page, CONVERSATION, REPLIES)
    page.get_by_role("button", name="Paste…").click()
    page.get_by_label("A conversation as JSON or as text").fill(text)
    page.get_by_role("button", name="Use it").click()
    assert problem in page.locator("#paste-problem").inner_text()
    assert written(page) == (CONVERSATION, REPLIES)


def test_the_example_is_one_click_away_and_can_be_scored(page: Page) -> None:
    page.get_by_role("button", name="Example").click()
    assert len(score(page)["scores"]) == len(written(page)[1]) == 3
    assert len(ranking(page)) == 3


def test_the_api_reference_opens_from_the_playground(page: Page) -> None:
    page.get_by_role("link", name="API reference").first.click()
    page.get_by_role("heading", name="POST /v1/score", exact=True).wait_for()
