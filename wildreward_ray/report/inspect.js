// Filters, sorts and pages through the interactions that the page holds. Texts of strangers go through textContent only.
(() => {
  "use strict";
  const PAGE = 25;
  const FOLD_CHARACTERS = 320, FOLD_LINES = 7;
  const MISSING = "not recorded";
  const MAX_ENTROPY = Math.log(5);
  const { names, rows } = JSON.parse(document.getElementById("interactions").textContent);
  const byId = new Map(rows.map((row, i) => [row.id, i]));
  const haystacks = new Array(rows.length);
  const browser = document.getElementById("browser");
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const status = document.getElementById("status");
  const previous = document.getElementById("previous");
  const next = document.getElementById("next");
  const controls = [...form.elements].filter((control) => control.name);
  const defaults = new Map(controls.map((control) => [control.name, control.value]));

  // Positions in `shown` are positions in the filtered and sorted list; `current` is one of them, or -1.
  let shown = [], page = 0, current = -1;

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  const number = (value) => value.toLocaleString("en-US");
  const levelName = (level) => (level ? level + " " + names[level] : "no level");

  // Filtering

  function state() {
    return Object.fromEntries(controls.map((control) => [control.name, control.value]));
  }

  function haystack(i) {
    if (haystacks[i] === undefined) {
      const row = rows[i];
      const parts = [row.id, row.prompt, row.response, row.feedback, ...(row.history || []).map((said) => said[1])];
      haystacks[i] = parts.filter(Boolean).join("\n").toLowerCase();
    }
    return haystacks[i];
  }

  function outcomeMatches(outcome, wanted) {
    const dropped = outcome.startsWith("dropped:");
    if (wanted === "kept") return !dropped && outcome !== MISSING;
    return wanted === "dropped" ? dropped : outcome === wanted;
  }

  function flagMatches(flags, wanted) {
    return wanted === "any" ? flags.length > 0 : flags.some((flag) => flag.split(":")[0] === wanted);
  }

  function entropyMatches(entropy, s) {
    const low = Math.min(s.emin, s.emax), high = Math.max(s.emin, s.emax);
    if (low <= 0 && high >= MAX_ENTROPY) return true;
    return entropy !== undefined && low <= entropy && entropy <= high;
  }

  function matches(i, s, words) {
    const row = rows[i];
    for (const name of ["level", "judge", "origin", "language", "by"]) {
      if (s[name] && String(row[name] ?? MISSING) !== s[name]) return false;
    }
    if (s.outcome && !outcomeMatches(row.outcome ?? MISSING, s.outcome)) return false;
    if (s.flag && !flagMatches(row.flags ?? [], s.flag)) return false;
    if (!entropyMatches(row.entropy, s)) return false;
    return words.every((word) => haystack(i).includes(word));
  }

  function filter() {
    const s = state();
    const words = s.q.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.map((_, i) => i).filter((i) => matches(i, s, words));
    const key = s.sort.replace("-", "");
    if (!key) return;
    const sign = s.sort.endsWith("-") ? -1 : 1;
    // Rows without the number come last either way; equal ones keep the order they were drawn in.
    const value = (i) => rows[i][key] ?? sign * Infinity;
    shown.sort((a, b) => (value(a) === value(b) ? a - b : sign * (value(a) - value(b))));
  }

  // Drawing

  function badge(text, kind, level) {
    const made = element("span", "badge " + (kind || "plain"));
    if (level) {
      const swatch = element("span", "swatch");
      swatch.style.background = "var(--l" + level + ")";
      made.append(swatch);
    }
    made.append(text);
    return made;
  }

  function segments(title, probs) {
    const bar = element("div", "segments");
    probs.forEach((p, i) => {
      const part = element("span");
      part.style.width = 100 * p + "%";
      part.style.background = "var(--l" + (i + 1) + ")";
      part.title = levelName(i + 1) + ": " + (100 * p).toFixed(1) + " %";
      bar.append(part);
    });
    const spoken = probs.map((p, i) => names[i + 1] + " " + Math.round(100 * p) + " %").join(", ");
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", title + ": " + spoken);
    return [element("span", "", title), bar];
  }

  function said(text, className) {
    const made = element("div", className || "said", text);
    made.dir = "auto";
    return made;
  }

  function cutNote(missing, where) {
    return missing ? element("div", "cut", number(missing) + " more characters " + where + " are not on this page") : null;
  }

  function passage(title, text, missing) {
    if (text === undefined) return null;
    const heading = element("div", "passage-title", title);
    const start = text.slice(0, FOLD_CHARACTERS).split("\n").slice(0, FOLD_LINES).join("\n");
    const rest = cutNote(missing, "at its end");
    if (start.length >= text.length) return element("div", "passage", heading, said(text), rest);
    const more = element("span", "more", "all " + number(text.length + (missing || 0)) + " characters");
    const fold = element("details", "", element("summary", "", said(start + "…", "said preview"), more), said(text), rest);
    return element("div", "passage", heading, fold);
  }

  function history(row) {
    const messages = row.history || [];
    const missing = (row.cut || {}).history;
    if (!messages.length && !missing) return null;
    const summary = element("summary", "", element("span", "more flush", "history, " + messages.length + " messages"));
    const fold = element("details", "passage", summary, cutNote(missing, "at its beginning"));
    for (const [role, text] of messages) fold.append(element("div", "role", role), said(text));
    return fold;
  }

  function evidence(row) {
    if (!row.evidence) return null;
    if (!byId.has(row.evidence)) return element("span", "", " · evidence " + row.evidence + " (not among the drawn ones)");
    const button = element("button", "link", "evidence " + row.evidence);
    button.type = "button";
    button.addEventListener("click", (event) => {
      // Else the entry around the button, which is gone by then, would be marked.
      event.stopPropagation();
      jump(row.evidence);
    });
    return element("span", "", " · ", button);
  }

  function badges(row) {
    const made = [badge(levelName(row.level), "plain", row.level)];
    if (row.judge && row.judge !== row.level) made.push(badge("judge said " + levelName(row.judge), "warn", row.judge));
    if (row.origin) made.push(badge(row.origin));
    if (row.by) made.push(badge("by " + row.by));
    if (row.verdict) made.push(badge("refusal: " + row.verdict.replaceAll("_", " ")));
    if (row.outcome) {
      const dropped = row.outcome.startsWith("dropped:");
      const label = row.label ? ", label " + row.label : "";
      made.push(badge(row.outcome.replace(":", ": ").replaceAll("_", " ") + label, dropped ? "warn" : "good"));
    }
    for (const flag of row.flags || []) made.push(badge(flag, "warn"));
    if (row.language) made.push(badge(row.language));
    if (row.model) made.push(badge(row.model));
    return element("div", "badges", ...made);
  }

  function measures(row) {
    const parts = [];
    if (row.entropy !== undefined) parts.push("entropy " + row.entropy.toFixed(2) + " nats");
    if (row.turn) parts.push("turn " + row.turn);
    if (row.length !== undefined) parts.push("response of " + number(row.length) + " characters");
    if (row.similarity !== undefined) parts.push("similarity " + row.similarity.toFixed(2));
    if (row.time) parts.push(row.time);
    parts.push(row.id);
    return element("div", "measures", parts.join(" · "), evidence(row));
  }

  function entry(row, position) {
    const cut = row.cut || {};
    const bars = [
      ...(row.probs ? segments("final", row.probs) : []),
      ...(row.judge_probs ? segments("judge", row.judge_probs) : []),
    ];
    const made = element(
      "article", "entry", badges(row), bars.length ? element("div", "probs", ...bars) : null, measures(row), history(row),
      passage("User asked", row.prompt, cut.prompt), passage("Assistant replied", row.response, cut.response),
      passage("User wrote next", row.feedback, cut.feedback));
    made.tabIndex = -1;
    made.addEventListener("click", () => mark(position));
    return made;
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const first = page * PAGE;
    list.replaceChildren(...shown.slice(first, first + PAGE).map((i, k) => entry(rows[i], first + k)));
    status.textContent = shown.length
      ? number(shown.length) + " of " + number(rows.length) + ", page " + (page + 1) + " of " + pages
      : "None of " + number(rows.length) + " matches";
    previous.disabled = page === 0;
    next.disabled = page === pages - 1;
    for (const control of controls) {
      const output = control.type === "range" ? control.parentElement.querySelector("output") : null;
      if (output) output.textContent = Number(control.value).toFixed(2);
    }
    mark(current);
  }

  function mark(position) {
    current = position;
    [...list.children].forEach((child, k) => child.classList.toggle("current", page * PAGE + k === current));
  }

  // Moving

  function move(step) {
    if (!shown.length) return;
    const inside = current >= page * PAGE && current < (page + 1) * PAGE;
    const to = inside ? current + step : step > 0 ? page * PAGE : Math.min((page + 1) * PAGE, shown.length) - 1;
    go(Math.min(Math.max(to, 0), shown.length - 1));
  }

  function go(position) {
    current = position;
    const wanted = Math.floor(position / PAGE);
    if (wanted === page) mark(position);
    else {
      page = wanted;
      draw();
      writeAddress(false);
    }
    const chosen = list.children[position - page * PAGE];
    chosen.focus({ preventScroll: true });
    chosen.scrollIntoView({ block: "start" });
  }

  function turnPage(step) {
    page += step;
    current = -1;
    draw();
    writeAddress(false);
    browser.scrollIntoView({ block: "start" });
  }

  // A jump is a step in the browser's history, so that Back returns to where it came from.
  function jump(id) {
    if (!shown.includes(byId.get(id))) for (const control of controls) control.value = defaults.get(control.name);
    filter();
    const position = shown.indexOf(byId.get(id));
    page = Math.floor(position / PAGE);
    draw();
    writeAddress(true, id);
    go(position);
  }

  // The address

  function writeAddress(step, id) {
    const params = new URLSearchParams();
    for (const control of controls) {
      if (control.value !== defaults.get(control.name)) params.set(control.name, control.value);
    }
    if (page) params.set("page", page + 1);
    if (id) params.set("at", id);
    const address = "#" + params;
    if (step) window.history.pushState(null, "", address);
    else window.history.replaceState(null, "", address);
  }

  function readAddress() {
    const params = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) {
      control.value = params.get(control.name) ?? defaults.get(control.name);
      // A value that this page doesn't offer leaves a choice empty: show everything rather than nothing.
      if (control.tagName === "SELECT" && control.selectedIndex < 0) control.value = defaults.get(control.name);
    }
    filter();
    const position = shown.indexOf(byId.get(params.get("at")));
    page = position >= 0 ? Math.floor(position / PAGE) : (Number.parseInt(params.get("page"), 10) || 1) - 1;
    current = -1;
    draw();
    if (position >= 0) go(position);
  }

  function changed() {
    filter();
    page = 0;
    current = -1;
    draw();
    writeAddress(false);
  }

  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(changed, 120);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  // The controls get their first values only after the event.
  form.addEventListener("reset", () => setTimeout(changed, 0));
  previous.addEventListener("click", () => turnPage(-1));
  next.addEventListener("click", () => turnPage(1));
  window.addEventListener("popstate", readAddress);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing) return;
    const inList = list.contains(document.activeElement);
    if (event.key === "j" || (inList && event.key === "ArrowDown")) move(1);
    else if (event.key === "k" || (inList && event.key === "ArrowUp")) move(-1);
    else if (event.key === "/") form.elements.q.focus();
    else return;
    event.preventDefault();
  });

  browser.hidden = false;
  readAddress();
})();
