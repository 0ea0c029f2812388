// What is asked for: the conversation and its candidate replies as fields, by hand or from pasted text.
"use strict";
const at = (id) => document.getElementById(id);

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((child) => child !== null));
  return made;
}

function labelled(made, attributes) {
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const form = (() => {
  const ROLES = ["system", "user", "assistant", "tool"];
  const EXAMPLE = {
    messages: [
      { role: "user", content: "My sourdough starter smells like nail polish remover. Is it dead?" },
      { role: "assistant", content: "No. That smell is acetone, and it means that the starter is hungry." },
      { role: "user", content: "OK, so what do I do with it now? I want to bake on Saturday." },
    ],
    replies: [
      "Feed it twice a day until Saturday: keep 20 g of starter and stir in 40 g of flour and 40 g of water. When it "
        + "doubles within 6 hours and smells of yoghurt, it is ready to bake with.",
      "You could feed it more often.",
      "As I said, the smell is acetone. Acetone is an organic compound with the formula (CH3)2CO.",
    ],
  };

  const messages = at("messages"), replies = at("replies");

  function textField(content) {
    const field = element("textarea");
    field.rows = 2;
    field.dir = "auto";
    field.value = content;
    return field;
  }

  function entry(list, head, content) {
    const remove = element("button", "remove", "Remove");
    remove.type = "button";
    const made = element("li", "entry", element("div", "entry-head", head, remove), textField(content));
    remove.addEventListener("click", () => {
      const next = made.nextElementSibling || made.previousElementSibling;
      made.remove();
      name();
      (next ? next.querySelector("textarea") : list.parentElement.querySelector(":scope > button")).focus();
    });
    list.append(made);
    name();
    return made;
  }

  function addMessage(role, content) {
    const select = element("select", "", ...ROLES.map((known) => new Option(known, known)));
    select.value = role;
    return entry(messages, select, content);
  }

  const addReply = (content) => entry(replies, element("span", "name"), content);

  // Numbers are part of every name, so all names are set anew when an entry comes or goes.
  function name() {
    [...messages.children].forEach((made, i) => {
      const select = made.querySelector("select");
      labelled(select, { "aria-label": "Role of message " + (i + 1) });
      labelled(made.querySelector("textarea"), { "aria-label": "Message " + (i + 1) });
      labelled(made.querySelector(".remove"), { "aria-label": "Remove message " + (i + 1) });
    });
    [...replies.children].forEach((made, i) => {
      made.querySelector(".name").textContent = "reply " + (i + 1);
      labelled(made.querySelector("textarea"), { "aria-label": "Reply " + (i + 1) });
      labelled(made.querySelector(".remove"), { "aria-label": "Remove reply " + (i + 1) });
    });
  }

  function read() {
    const text = (made) => made.querySelector("textarea").value;
    const role = (made) => made.querySelector("select").value;
    return {
      messages: [...messages.children].map((made) => ({ role: role(made), content: text(made) })),
      replies: [...replies.children].map(text),
    };
  }

  function fill(asked) {
    messages.replaceChildren();
    for (const message of asked.messages) addMessage(message.role, message.content);
    if (!asked.replies) return;
    replies.replaceChildren();
    for (const reply of asked.replies) addReply(reply);
  }

  // Pasting

  function checkedMessages(value, where) {
    if (!Array.isArray(value)) throw new Error(where + " must be an array of messages");
    return value.map((message, i) => {
      const { role, content } = message ?? {};
      const known = ROLES.join(", ");
      if (!ROLES.includes(role)) throw new Error(`${where}[${i}].role is ${JSON.stringify(role)}: use ${known}`);
      if (typeof content !== "string") throw new Error(`${where}[${i}].content is not a text`);
      return { role, content };
    });
  }

  function fromJson(value) {
    if (Array.isArray(value)) return checkedMessages(value, "messages");
    if (value && value.messages !== undefined) return checkedMessages(value.messages, "messages");
    if (!value || typeof value.prompt !== "string") throw new Error("there are neither messages nor a text as prompt");
    const found = [...checkedMessages(value.history ?? [], "history"), { role: "user", content: value.prompt }];
    if (value.response === undefined || value.response === null) return found;
    if (typeof value.response !== "string") throw new Error("response is not a text");
    return [...found, { role: "assistant", content: value.response }];
  }

  function fromText(text) {
    const found = [];
    for (const line of text.split(/\r?\n/)) {
      const start = /^\s*(system|user|assistant|tool):\s?(.*)$/i.exec(line);
      if (start) found.push({ role: start[1].toLowerCase(), content: start[2] });
      else if (found.length) found.at(-1).content += "\n" + line;
      else throw new Error("the first line begins with no role: use " + ROLES.map((role) => role + ":").join(", "));
    }
    return found.map(({ role, content }) => ({ role, content: content.trim() }));
  }

  function parsed(text) {
    const trimmed = text.trim();
    if (!trimmed) throw new Error("there is nothing to use");
    if (!/^[[{]/.test(trimmed)) return fromText(trimmed);
    try { return fromJson(JSON.parse(trimmed)); } catch (problem) {
      throw problem instanceof SyntaxError ? new Error("this is not valid JSON: " + problem.message) : problem;
    }
  }

  function usePaste() {
    at("paste-problem").textContent = "";
    try {
      const found = parsed(at("paste").value);
      const reply = found.at(-1)?.role === "assistant" ? [found.pop().content] : null;
      fill({ messages: found, replies: reply });
      at("paste").value = "";
      togglePaste(false);
      at("score").focus();
    } catch (problem) {
      at("paste-problem").textContent = problem.message;
    }
  }

  function togglePaste(open) {
    at("paste-panel").hidden = !open;
    labelled(at("paste-toggle"), { "aria-expanded": String(open) });
    if (open) at("paste").focus();
  }

  // Marks the message or reply that a field such as items[2].messages[0].content names. The first item alone names none:
  // what is wrong with the conversation, which all items share, is met there.
  function blame(field, count) {
    for (const made of document.querySelectorAll(".entry.blamed")) made.classList.remove("blamed");
    const found = /^items\[(\d+)\](?:\.messages\[(\d+)\])?/.exec(field ?? "");
    if (!found || (found[1] === "0" && found[2] === undefined)) return;
    const inConversation = found[2] !== undefined && Number(found[2]) < count;
    const made = inConversation ? messages.children[found[2]] : replies.children[found[1]];
    made?.classList.add("blamed");
  }

  function clear() {
    fill({ messages: [{ role: "user", content: "" }], replies: ["", ""] });
    blame(null);
  }

  for (const [id, handler] of Object.entries({
    example: () => fill(EXAMPLE),
    reset: clear,
    "paste-toggle": () => togglePaste(at("paste-panel").hidden),
    "use-paste": usePaste,
    "add-reply": () => addReply("").querySelector("textarea").focus(),
    "add-message": () => {
      const last = messages.lastElementChild?.querySelector("select").value;
      addMessage(last === "user" ? "assistant" : "user", "").querySelector("textarea").focus();
    },
  })) at(id).addEventListener("click", handler);
  clear();
  return { read, fill, blame };
})();
