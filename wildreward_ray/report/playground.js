// Scores candidate replies by the service and shows what comes back. Texts go through textContent and value only.
(() => {
  const KEPT = 50, PREVIEW = 260, DIGITS = 4;
  const HISTORY = "wildreward.history.1", TOKEN = "wildreward.token";
  // A browser may be set to keep nothing; then it lasts until the page is left.
  const store = {
    get(key) {
      try { return sessionStorage.getItem(key); } catch { return null; }
    },
    set(key, value) {
      try { sessionStorage.setItem(key, value); return true; } catch { return false; }
    },
  };

  let card = null, token = store.get(TOKEN) || "", wantsToken = token !== "", busy = false;
  let kept = savedHistory();

  class Failure extends Error {
    constructor(title, detail, facts = {}, field = "") {
      super(detail);
      Object.assign(this, { title, facts, field });
    }
  }

  // Asking the service

  function requestBody(asked) {
    const item = (content) => ({ messages: [...asked.messages, { role: "assistant", content }] });
    return { items: asked.replies.map(item) };
  }

  async function call(path, body) {
    const headers = body === undefined ? {} : { "Content-Type": "application/json" };
    if (token) headers.Authorization = "Bearer " + token;
    const began = performance.now();
    let response, text;
    try {
      response = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body, cache: "no-store" });
      text = await response.text();
    } catch (problem) {
      throw new Failure("No reply from the service", problem.message);
    }
    const ms = performance.now() - began;
    if (!response.ok) throw refusal(response, text);
    try { return { value: JSON.parse(text), ms }; } catch {
      throw new Failure("The service's reply is not JSON", text.slice(0, 400), { status: response.status });
    }
  }

  function refusal(response, text) {
    let told = {};
    try { told = JSON.parse(text) ?? {}; } catch { told = { detail: text.slice(0, 400) }; }
    const detail = typeof told.detail === "string" ? told.detail : JSON.stringify(told.detail ?? told);
    const wait = response.headers.get("Retry-After");
    const facts = {
      status: response.status + (response.statusText ? " " + response.statusText : ""),
      code: told.code,
      field: told.field,
      "another try": wait && (/^\d+$/.test(wait) ? "may succeed in " + wait + " s" : "may succeed after " + wait),
      "request id": response.headers.get("X-Request-Id"),
    };
    if (response.status === 401) askToken();
    return new Failure("The service gave no scores", detail, facts, String(told.field ?? ""));
  }

  function checkedScores(value, count) {
    const finite = (list) => Array.isArray(list) && list.every(Number.isFinite);
    const scores = value?.scores;
    const whole = Array.isArray(scores) && scores.length === count
      && scores.every((one) => Number.isFinite(one?.score) && finite(one.level_probs) && one.level_probs.length > 1);
    if (!whole) throw new Failure("The service's reply is not one score a reply", JSON.stringify(value).slice(0, 400));
    return value;
  }

  async function score() {
    if (busy) return;
    const asked = form.read();
    setBusy(true);
    try {
      const { value, ms } = await call("v1/score", JSON.stringify(requestBody(asked)));
      const made = { ...asked, ms, time: Date.now(), reply: checkedScores(value, asked.replies.length) };
      remember(made);
      showResults(made);
      if (!card || card.version !== made.reply.version) showModel();
    } catch (problem) {
      showFailure(problem, asked.messages.length);
    } finally {
      setBusy(false);
    }
  }

  function setBusy(now) {
    busy = now;
    at("score").disabled = now;
    if (!now) return;
    form.blame(null);
    at("failure").hidden = true;
    at("status").hidden = false;
    at("status").textContent = "Scoring…";
  }

  async function showModel() {
    try {
      card = (await call("v1/models")).value.data[0];
      const facts = [card.id, "version " + card.version, card.engine, card.dtype, "scores 1 to " + card.levels,
        "up to " + card.max_length + " tokens", card.calibrated ? "calibrated" : ""];
      at("model").textContent = facts.filter(Boolean).join(" · ");
    } catch (problem) {
      at("model").textContent = "What is served is not known: " + problem.message;
    }
  }

  function askToken() {
    wantsToken = true;
    at("token-note").textContent = (token ? "The token was not accepted. " : "")
      + "It is kept in this tab until the tab is closed, and sent to this service only.";
    at("access").hidden = false;
    at("token").focus();
  }

  function useToken(event) {
    event.preventDefault();
    token = at("token").value.trim();
    store.set(TOKEN, token);
    at("token").value = "";
    at("access").hidden = true;
    showModel();
    if (!at("failure").hidden) score();
  }

  // Showing

  // From bad to good over the palette of the five judge levels; an even number of levels has no neutral one.
  function color(level, levels) {
    const stops = levels % 2 ? ["--l1", "--l2", "--l3", "--l4", "--l5"] : ["--l1", "--l2", "--l4", "--l5"];
    const place = (stops.length - 1) * (level - 1) / (levels - 1), i = Math.min(Math.floor(place), stops.length - 2);
    return `color-mix(in oklab, var(${stops[i + 1]}) ${100 * (place - i)}%, var(${stops[i]}))`;
  }

  function levelBar(probs) {
    const share = (p) => (100 * p).toFixed(1) + " %";
    const bar = element("div", "segments"), shares = element("ul", "shares");
    probs.forEach((p, i) => {
      const part = element("span"), swatch = element("span", "swatch");
      part.style.width = 100 * p + "%";
      part.style.background = swatch.style.background = color(i + 1, probs.length);
      part.title = "level " + (i + 1) + ": " + share(p);
      bar.append(part);
      shares.append(element("li", "", swatch, i + 1 + ": " + share(p)));
    });
    const spoken = probs.map((p, i) => "level " + (i + 1) + " " + share(p)).join(", ");
    return element("td", "mix", labelled(bar, { role: "img", "aria-label": spoken }), shares);
  }

  function scoreBar(score, levels) {
    const fill = element("div", "fill"), track = element("div", "track", fill);
    fill.style.width = 100 * (score - 1) / (levels - 1) + "%";
    labelled(track, {
      role: "meter", "aria-label": "Score", "aria-valuemin": 1, "aria-valuemax": levels, "aria-valuenow": score,
    });
    const number = element("div", "score", score.toFixed(DIGITS));
    number.title = String(score);
    const ends = element("div", "ends", element("span", "", "1"), element("span", "", String(levels)));
    return element("td", "", number, track, ends);
  }

  function replyText(text, i) {
    const said = element("div", "said reply-text", text);
    said.dir = "auto";
    const title = element("div", "reply-name", "reply " + (i + 1) + (text ? "" : ", empty"));
    if (text.length <= PREVIEW) return element("th", "", title, text ? said : null);
    const start = element("span", "said preview", text.slice(0, PREVIEW) + "…");
    start.dir = "auto";
    const more = element("span", "more", "all " + text.length.toLocaleString("en-US") + " characters");
    return element("th", "", title, element("details", "", element("summary", "", start, more), said));
  }

  function resultRow({ score, level_probs }, text, i, rank) {
    const first = element("td", "rank", String(rank)), bar = scoreBar(score, level_probs.length);
    const row = element("tr", "", first, bar, levelBar(level_probs), replyText(text, i));
    for (const cell of row.children) labelled(cell, { role: cell.tagName === "TH" ? "rowheader" : "cell" });
    row.lastChild.scope = "row";
    row.dataset.reply = i + 1;
    row.dataset.score = score;
    return labelled(row, { role: "row" });
  }

  function showResults(made) {
    const { scores, model, version } = made.reply;
    const order = scores.map((_, i) => i).sort((a, b) => scores[b].score - scores[a].score || a - b);
    at("ranking").replaceChildren(...order.map((i, rank) => resultRow(scores[i], made.replies[i], i, rank + 1)));
    const count = scores.length === 1 ? "1 reply" : scores.length + " replies, best first";
    at("caption").textContent = `${count}; scores from 1 to ${scores[0].level_probs.length}, the higher the better`;
    at("served").textContent = `${model} · version ${version} · ${made.ms.toFixed(0)} ms from this browser and back`;
    at("raw").textContent = JSON.stringify(made.reply, null, 2);
    at("results").hidden = false;
    at("failure").hidden = at("status").hidden = true;
    drawHistory(made);
    showOutcome();
  }

  function showFailure(problem, count) {
    const known = problem instanceof Failure;
    const facts = element("dl");
    for (const [name, value] of Object.entries(known ? problem.facts : {})) {
      if (value) facts.append(element("dt", "", name), element("dd", "", String(value)));
    }
    const title = element("h3", "", known ? problem.title : "The page itself failed");
    at("failure").replaceChildren(title, element("p", "", problem.message), facts);
    at("failure").hidden = false;
    // Scores of an earlier request beside an error could be taken for this one's.
    at("results").hidden = at("status").hidden = true;
    drawHistory(null);
    if (known) form.blame(problem.field, count);
    showOutcome();
  }

  // Where both sides stand one below the other, the outcome is far from the button.
  function showOutcome() {
    if (matchMedia("(max-width: 900px)").matches) at("results-title").scrollIntoView({ block: "start" });
  }

  // The tab's history

  function savedHistory() {
    try {
      const saved = JSON.parse(store.get(HISTORY) ?? "[]");
      return Array.isArray(saved) ? saved : [];
    } catch { return []; }
  }

  function remember(made) {
    kept = [made, ...kept].slice(0, KEPT);
    // The browser holds a few MB a site: the oldest go first, and what never fits lives until the page is left.
    for (let n = kept.length; n > 0 && !store.set(HISTORY, JSON.stringify(kept.slice(0, n))); n -= 1);
  }

  function drawHistory(current) {
    const rows = kept.map((made) => {
      const best = Math.max(...made.reply.scores.map((one) => one.score));
      const when = element("span", "soft", new Date(made.time).toLocaleTimeString());
      const what = element("span", "", made.replies.length + " scored, best " + best.toFixed(DIGITS));
      const gist = element("span", "gist soft", made.messages.at(-1)?.content.slice(0, 200) ?? "");
      const button = element("button", "", when, what, gist);
      button.type = "button";
      if (made === current) labelled(button, { "aria-current": "true" });
      button.addEventListener("click", () => restore(made));
      return element("li", "", button);
    });
    at("history").replaceChildren(...rows);
    at("history-note").hidden = rows.length > 0;
    at("forget").hidden = !rows.length;
  }

  function restore(made) {
    form.blame(null);
    form.fill(made);
    showResults(made);
  }

  function forget() {
    kept = [];
    store.set(HISTORY, "[]");
    drawHistory(null);
  }

  // curl

  const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

  // printf is built into the shell, so that the body isn't bound by what one argument of a command may hold.
  function curlCommand() {
    const body = JSON.stringify(requestBody(form.read()), null, 1);
    const authorization = wantsToken ? '  -H "Authorization: Bearer $WILDREWARD_TOKEN" \\\n' : "";
    const url = new URL("v1/score", document.baseURI).href;
    return `printf '%s' ${quoted(body)} |\ncurl -sS ${quoted(url)} \\\n${authorization}`
      + "  -H 'Content-Type: application/json' --data-binary @-";
  }

  async function copyCurl() {
    at("curl").textContent = curlCommand();
    at("curl-panel").hidden = false;
    const note = wantsToken ? " Put the token into the environment variable WILDREWARD_TOKEN." : "";
    try {
      await navigator.clipboard.writeText(at("curl").textContent);
      at("copied").textContent = "Copied." + note;
    } catch {
      // Browsers give the clipboard to pages on localhost or HTTPS only.
      getSelection().selectAllChildren(at("curl"));
      at("copied").textContent = "This browser lets the page copy nothing: it is selected, press Ctrl+C." + note;
    }
  }

  for (const [id, handler] of Object.entries({ score, copy: copyCurl, forget })) {
    at(id).addEventListener("click", handler);
  }
  at("access").addEventListener("submit", useToken);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    score();
  });
  drawHistory(null);
  showModel();
})();
