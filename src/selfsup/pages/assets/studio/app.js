// The studio: one page whose address says which of its modules draws the middle of it.

import { h } from "selfsup/dom.js";

// What the navigation shows, and the key that leads there. Each is a module with draw(context, parameters).
const PAGES = [
  { name: "runs", title: "Runs", key: "1" },
  { name: "compare", title: "Compare", key: "2" },
  { name: "inspect", title: "Inspect", key: "3" },
  { name: "try", title: "Try", key: "4" },
  { name: "search", title: "Search", key: "5" },
  { name: "map", title: "Map", key: "6" },
  { name: "start", title: "Start", key: "7" },
];
const OTHERS = ["run"]; // reached from these

const main = h("div", { class: "view", tabindex: "-1" });
const banner = h("div", { class: "banner", role: "alert", hidden: true });
const links = PAGES.map(({ name, title, key }) =>
  h("a", { href: `#/${name}`, title: `${title} (${key})`, "aria-keyshortcuts": key }, title),
);
let leave = () => {}; // ends what the page that is shown has begun

/** Say what went wrong until it is closed; nothing takes the words away. */
export function complain(message) {
  const close = h("button", { type: "button", "aria-label": "Close the message", onclick: hush }, "✕");
  banner.replaceChildren(h("span", {}, message), close);
  banner.hidden = false;
}

function hush() {
  banner.hidden = true;
  banner.replaceChildren();
}

/** What a page is given: requests and streams that end when it is left. */
function contextOf(leaving) {
  const streams = [];
  const timers = [];
  leaving.signal.addEventListener("abort", () => {
    streams.forEach((stream) => stream.close());
    timers.forEach(clearInterval);
  });
  return {
    complain,
    signal: leaving.signal,

    /** The JSON of an answer; a body is sent as JSON, by POST. An error has the server's sentence. */
    async api(path, options = {}) {
      const response = await fetch(path, requestOf({ signal: leaving.signal, ...options }));
      if (response.ok) return response.json(); // which an abort ends with an AbortError of its own
      const answer = await response.json().catch(() => null);
      throw new Error(answer?.error?.message ?? `The studio answered ${response.status}.`);
    },

    /** Calls onMessage with each message of a stream, which connects anew by itself; returns what closes it. */
    events(path, onMessage) {
      const stream = new EventSource(path);
      stream.onmessage = (event) => guarded(() => onMessage(JSON.parse(event.data)));
      streams.push(stream);
      return () => stream.close();
    },

    /** Calls again and again while the page is shown. */
    every(seconds, action) {
      timers.push(setInterval(() => guarded(action), seconds * 1000));
    },

    /** What an event does, with a complaint where it fails. */
    doing(action) {
      return (event) => guarded(() => action(event));
    },
  };
}

function requestOf({ body, ...options }) {
  if (body === undefined) return options;
  const headers = { "content-type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), ...options };
}

async function guarded(action) {
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
  }
}

/** The page and the parameters that an address names: `#/run/some/name?x=1` gives run, rest "some/name", x "1". */
export function addressed(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  const known = [...PAGES.map((page) => page.name), ...OTHERS];
  const parameters = { rest: decodeURIComponent(rest.join("/")), query: new URLSearchParams(query) };
  return { name: known.includes(name) ? name : "runs", parameters };
}

async function show() {
  leave();
  hush();
  const leaving = new AbortController();
  leave = () => leaving.abort();
  const { name, parameters } = addressed(location.hash);
  PAGES.forEach((page, number) => {
    page.name === name ? links[number].setAttribute("aria-current", "page") : links[number].removeAttribute("aria-current");
  });
  main.setAttribute("aria-busy", "true");
  await guarded(async () => {
    const page = await import(`selfsup/studio/${name}.js`);
    const drawn = await page.draw(contextOf(leaving), parameters);
    if (leaving.signal.aborted) return;
    main.replaceChildren(drawn);
    document.title = `${main.querySelector("h1")?.textContent ?? name} · selfsup`;
  });
  if (leaving.signal.aborted) return;
  main.removeAttribute("aria-busy");
  main.focus({ preventScroll: true });
}

/** Digits lead to pages and Escape closes a message, but where one writes. */
function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") hush();
  if (event.target.closest("input, textarea, select")) return;
  const page = PAGES.find(({ key }) => key === event.key);
  if (page) location.hash = `#/${page.name}`;
}

/** The whole of the page; what the address names is drawn in its middle. */
export function draw() {
  history.replaceState(null, "", `/${location.hash}`); // without the token
  const skip = h("button", { type: "button", class: "skip", onclick: () => main.focus() }, "Skip to the page");
  const header = h("header", { class: "top" }, h("strong", {}, "selfsup"), h("nav", { "aria-label": "Pages" }, ...links));
  const style = h("link", { rel: "stylesheet", href: "/assets/studio/studio.css" });
  window.addEventListener("hashchange", show);
  window.addEventListener("unhandledrejection", (event) => complain(String(event.reason?.message ?? event.reason)));
  document.addEventListener("keydown", onKey);
  show();
  return h("div", { class: "studio" }, style, skip, header, banner, main);
}
