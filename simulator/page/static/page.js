// Without this script, the page is a list that does not change until it is loaded again. The
// script shows the updates that the server sends, and follows links without loading the page.
"use strict";

const announceEvery = 10000; // ms: a screen reader reads the summary at most that often
const typingPause = 250; // ms
let source = null;
let announced = 0;

function parse(html) {
  return new DOMParser().parseFromString(html, "text/html");
}

// morph makes an element like another one, and keeps what the reader has focused, opened,
// selected or typed. Elements with an id are identified by it.
function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.nodeType !== Node.ELEMENT_NODE) {
    from.nodeValue = to.nodeValue;
    return;
  }
  if (from.hasAttribute("data-auto") && !to.hasAttribute("data-auto")) from.open = false;
  for (const { name } of [...from.attributes]) {
    if (name !== "open" && !to.hasAttribute(name)) from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (name === "open" || from.getAttribute(name) === value) continue;
    from.setAttribute(name, value);
    if (name === "value" && from !== document.activeElement) from.value = value; // what the reader typed is out of date
  }
  const known = new Map();
  for (const child of from.children) if (child.id) known.set(child.id, child);
  let at = from.firstChild;
  for (const child of [...to.childNodes]) {
    let match = child.id ? known.get(child.id) : null;
    if (!child.id && at && !at.id && at.nodeName === child.nodeName) match = at;
    if (match && match.nodeName !== child.nodeName) match = null;
    if (!match) {
      from.insertBefore(document.importNode(child, true), at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else from.insertBefore(match, at);
    morph(match, child);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// show replaces the regions that a document contains.
function show(next) {
  const focused = document.activeElement;
  for (const id of ["controls", "faults", "list", "detail"]) {
    const to = next.getElementById(id);
    if (to) morph(document.getElementById(id), to);
  }
  // An element that moves loses the focus.
  if (focused && focused.id && document.activeElement !== focused) document.getElementById(focused.id)?.focus({ preventScroll: true });
  if (next.title) document.title = next.title;
  const now = Date.now();
  if (now - announced >= announceEvery) {
    announced = now;
    document.getElementById("announcement").textContent = document.getElementById("controls").dataset.summary;
  }
}

function state(name, text) {
  const p = document.getElementById("state");
  p.className = name;
  p.textContent = text;
}

function message(text) {
  document.getElementById("message").textContent = text;
}

function isPaused() {
  return new URLSearchParams(location.search).has("paused");
}

// connect receives the updates of the current view, unless it is paused.
function connect() {
  source?.close();
  source = null;
  if (isPaused()) return state("paused", "Paused");
  source = new EventSource("/events" + location.search);
  source.onopen = () => state("live", "Live");
  source.onerror = () => state("lost", "Connection lost");
  source.onmessage = (event) => show(parse(event.data));
}

// go shows another view. A later call overtakes an earlier one.
let latest = 0;
let typing = 0; // the timer of the search
async function go(url, options = {}) {
  const mine = ++latest;
  clearTimeout(typing); // otherwise, the search would overtake what the reader does next
  source?.close();
  try {
    const response = await fetch(url, options);
    const text = await response.text();
    if (mine !== latest) return false;
    if (!response.ok) {
      message(text);
      connect();
      return false;
    }
    message("");
    if (response.url !== location.href && options.history !== false) history.pushState(null, "", response.url);
    show(parse(text));
  } catch {
    if (mine === latest) message("The simulator is not responding.");
    return false;
  }
  connect();
  return true;
}

document.addEventListener("click", async (event) => {
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    await navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 2000);
    return;
  }
  const link = event.target.closest("a[href]");
  if (!link || link.origin !== location.origin || link.pathname !== "/" || link.hash || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  const before = new URLSearchParams(location.search).get("device");
  if (!(await go(link.href))) return;
  const after = new URLSearchParams(location.search).get("device");
  if (after !== null && after !== before) {
    const title = document.getElementById("device");
    title.focus({ preventScroll: true });
    title.scrollIntoView({ block: "nearest" });
  } else if (after === null && before !== null) {
    (document.querySelector(`#rows a[href*="device=${CSS.escape(encodeURIComponent(before))}"]`) ?? document.getElementById("q")).focus();
  }
});

document.addEventListener("submit", async (event) => {
  const form = event.target;
  event.preventDefault();
  const values = new URLSearchParams(new FormData(form));
  if (form.method === "post") {
    await go(form.action, { method: "POST", body: values, history: false });
    return;
  }
  for (const [name, value] of [...values]) if (!value && name !== "device") values.delete(name);
  await go("/?" + values);
});

document.addEventListener("input", (event) => {
  if (event.target.id !== "q") return;
  clearTimeout(typing);
  typing = setTimeout(() => event.target.form.requestSubmit(), typingPause);
});

addEventListener("popstate", () => go(location.href, { history: false }));

connect();
