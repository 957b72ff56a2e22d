// What the page does besides being read: times in the reader's zone, the command line as it is filled in, and what is
// new, as it happens. The server makes every part of it; here parts are only exchanged.

const AGAIN_MS = 1000; // at the least between two looks for what is new, and …
const AGAIN_TIMES = 30; // … so many times as long as a look takes: an open page costs the server little
const RETRY_MS = 3000; // until a server that refuses is asked again

const two = (number) => String(number).padStart(2, "0");

function localTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const at = new Date(each.dateTime);
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    each.textContent = `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  }
}

const quoted = (word) => (/^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

function commandOf(form) {
  const words = [form.dataset.command];
  for (const field of form.elements) {
    if (field.dataset.flag !== undefined) {
      if (field.checked) words.push(field.dataset.option);
    } else if (field.dataset.word !== undefined && field.value) {
      if (field.dataset.option) words.push(field.dataset.option);
      words.push(quoted(field.value));
    }
  }
  return words.join(" ");
}

function prepare(root) {
  localTimes(root);
  let name = "";
  try {
    name = localStorage.getItem("nexum-name") || "";
  } catch {} // a browser that keeps nothing
  for (const field of root.querySelectorAll("[data-name]")) {
    if (field.tagName === "INPUT" && name) field.value = name;
  }
  for (const form of root.querySelectorAll("form[data-command]")) {
    const say = () => (form.querySelector(".command").textContent = commandOf(form));
    form.addEventListener("input", say);
    say();
  }
}

document.addEventListener("submit", (event) => {
  const field = event.target.querySelector("input[data-name]:not([type=hidden])");
  try {
    if (field) localStorage.setItem("nexum-name", field.value);
  } catch {}
  for (const button of event.target.querySelectorAll("button")) setTimeout(() => (button.disabled = true));
});

document.addEventListener("input", (event) => event.target.closest("form.search") || event.target.form?.setAttribute("data-dirty", ""));

const isInUse = (part) => part.querySelector("form[data-dirty]") || (part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select, form button, form [type=radio]"));

function exchange(old, fresh) {
  prepare(fresh);
  for (const each of old.querySelectorAll("details[id]")) {
    const same = fresh.querySelector(`#${CSS.escape(each.id)}`);
    if (same) same.open = each.open;
  }
  if (old.isEqualNode(fresh)) return;
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const key = focused?.getAttribute("href");
  old.replaceWith(fresh);
  if (key) fresh.querySelector(`[href="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

let looking = false;
let wanted = false;

async function lookAgain() {
  wanted = true;
  if (looking) return;
  looking = true;
  while (wanted) {
    wanted = false;
    const began = performance.now();
    let tookMs = 0;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      tookMs = performance.now() - began;
      if (answer.redirected) location.reload();
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        const parts = [...fresh.querySelectorAll("#screens, [data-part]")].filter((each) => !each.parentElement.closest("[data-part]"));
        const before = document.getElementById("timeline-title")?.parentElement;
        for (const part of parts) {
          const old = document.getElementById(part.id);
          if (old && !isInUse(old)) exchange(old, document.adoptNode(part));
          else if (!old && part.matches("article") && before) {
            prepare(part);
            before.before(document.adoptNode(part));
          }
        }
        for (const old of document.querySelectorAll("main > article[data-part]")) {
          if (!fresh.getElementById(old.id) && !isInUse(old)) old.remove();
        }
      }
    } catch {} // the server is away: the stream says so
    const pauseMs = Math.max(AGAIN_MS, tookMs * AGAIN_TIMES);
    await new Promise((done) => setTimeout(done, pauseMs));
  }
  looking = false;
}

let stream = null;
let lastId = "";
let isAway = false;

function follow() {
  if (stream || document.hidden) return;
  const query = new URLSearchParams({ session: document.body.dataset.live, after: lastId });
  stream = new EventSource(`/api/live?${query}`);
  const seen = (event) => (lastId = event.lastEventId || lastId);
  stream.addEventListener("hello", (event) => {
    seen(event);
    document.getElementById("away").hidden = true;
    if (isAway) lookAgain();
    isAway = false;
  });
  for (const kind of ["event", "again"]) {
    stream.addEventListener(kind, (event) => {
      seen(event);
      document.getElementById("away").hidden = true;
      isAway = false;
      lookAgain();
    });
  }
  stream.addEventListener("error", () => {
    isAway = true;
    document.getElementById("away").hidden = false;
    leave();
    setTimeout(follow, RETRY_MS);
  });
}

function leave() {
  stream?.close();
  stream = null;
}

prepare(document);
document.getElementById("zone").textContent = `in your zone, ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
if (document.body.dataset.live !== undefined) {
  follow();
  document.addEventListener("visibilitychange", () => (document.hidden ? leave() : follow()));
  addEventListener("pagehide", leave);
}
