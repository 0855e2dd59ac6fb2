// Follows the page's stream, and puts what has changed in place of what was there.
"use strict";

const RECONNECT = 5000; // milliseconds
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

function relative(seconds) {
  const size = Math.abs(seconds);
  const [unit, name] = UNITS.find(([unit]) => size >= unit) || [1, "s"];
  const text = `${Math.floor(size / unit)} ${name}`;
  if (size < 1) return "now";
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

function showTimes() {
  const now = Date.now();
  for (const time of document.querySelectorAll("time")) {
    const text = relative((now - Date.parse(time.dateTime)) / 1000);
    if (time.textContent !== text) time.textContent = text;
  }
}

// Changes `now` into `next` in place, so that focus, selection and scroll positions stay.
function morph(now, next) {
  if (now.nodeType !== next.nodeType || now.nodeName !== next.nodeName) {
    now.replaceWith(next);
    return;
  }
  if (now.nodeType !== Node.ELEMENT_NODE) {
    if (now.nodeValue !== next.nodeValue) now.nodeValue = next.nodeValue;
    return;
  }
  for (const { name } of [...now.attributes]) if (!next.hasAttribute(name)) now.removeAttribute(name);
  for (const { name, value } of next.attributes) {
    if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  }
  if (now.nodeName === "TIME") return; // its text is ours
  morphChildren(now, next);
}

function morphChildren(now, next) {
  const old = [...now.childNodes];
  const wanted = [...next.childNodes];
  wanted.forEach((child, index) => {
    if (index < old.length) morph(old[index], child);
    else now.append(child);
  });
  old.slice(wanted.length).forEach((child) => child.remove());
}

function showPage(html) {
  const next = new DOMParser().parseFromString(html, "text/html").body;
  morphChildren(document.getElementById("page"), next);
  showTimes();
}

function showTrouble(text) {
  const place = document.getElementById("trouble");
  place.textContent = text;
  place.hidden = !text;
}

let source = null;

function follow(badge) {
  const log = document.getElementById("log");
  let fresh = false; // a stream begins with the whole log
  let attempt = null;
  const say = (state, text) => {
    badge.dataset.state = state;
    badge.textContent = text;
  };
  source = new EventSource(badge.dataset.live);
  source.onopen = () => {
    fresh = true;
    say("on", "live");
  };
  source.onerror = () => {
    say("off", "connecting…");
    // A browser does not ask again after an answer such as 502 or 503.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(badge), RECONNECT);
  };
  source.addEventListener("page", (event) => {
    showTrouble("");
    showPage(JSON.parse(event.data).html);
  });
  source.addEventListener("trouble", () => {
    showTrouble("The database does not answer; this is how it was before.");
  });
  source.addEventListener("gone", (event) => {
    source.close();
    say("off", "not live");
    showTrouble(JSON.parse(event.data).detail);
  });
  source.addEventListener("log", (event) => {
    const data = JSON.parse(event.data);
    if (fresh || data.attempt !== attempt) log.textContent = "";
    fresh = false;
    attempt = data.attempt;
    log.append(data.text);
    if (document.getElementById("follow").checked) log.scrollTop = log.scrollHeight;
  });
}

async function send(form) {
  if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return;
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (answer.ok && answer.redirected && form.action.endsWith("/delete")) {
      window.location.assign(answer.url);
    } else if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const said = page.querySelector("main p:not([hidden])");
      showTrouble(said ? said.textContent : `The answer was ${answer.status}.`);
    } else {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const notice = page.querySelector(".notice:not([hidden])");
      const place = document.getElementById("page");
      const next = page.getElementById("page");
      if (next) morphChildren(place, next);
      showTimes();
      document.querySelectorAll(".notice:not(#trouble)").forEach((old) => old.remove());
      if (notice) place.before(notice);
    }
  } catch {
    showTrouble("The application does not answer.");
  } finally {
    button.disabled = false;
  }
}

function themes() {
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme || (system.matches ? "dark" : "light");
  const say = () => {
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${button.textContent.toLowerCase()} theme`);
  };
  button.hidden = false;
  say();
  system.addEventListener("change", say);
  button.addEventListener("click", () => {
    const chosen = current() === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("lilota-theme", chosen);
    } catch {
      // It holds for this page.
    }
    say();
  });
}

document.addEventListener("submit", (event) => {
  if (event.target.method === "post") {
    event.preventDefault();
    send(event.target);
  }
});
document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  const field = document.querySelector("[data-slash]");
  if (event.key === "/" && field && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.nodeName)) {
    event.preventDefault();
    field.focus();
  }
});

themes();
showTimes();
setInterval(showTimes, 1000);
const badge = document.getElementById("live");
if (badge) {
  follow(badge);
  // A page that is left must not keep its connection: a browser has six for each host.
  window.addEventListener("pagehide", () => source.close());
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) follow(badge);
  });
}
