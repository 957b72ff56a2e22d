// The chat is kept in this browser: for each question its session, and its answer once that is whole.
"use strict";
const chat = JSON.parse(localStorage.getItem("chat") || "[]");
const keep = () => localStorage.setItem("chat", JSON.stringify(chat));
const AGAIN_MS = 1000;

function shown(kind, text) {
  const line = document.createElement("p");
  line.className = kind;
  line.textContent = text; // never as HTML: a model can say anything
  document.getElementById("chat").append(line);
  return line;
}

function show(entry) {
  shown("question", entry.question);
  const line = shown("answer", entry.answer || "");
  const note = shown("note", "");
  if (entry.answer === undefined) start(entry, line, note);
}

async function start(entry, line, note) {
  const order = { agent: "Desk", session_id: entry.session, input: entry.input };
  const body = JSON.stringify(order); // the same order is the same run, so it may be sent again
  try {
    const answer = await fetch("/runs/start", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const told = await answer.json();
    if (answer.ok) return follow(entry, line, note);
    note.textContent = told.message;
    if (answer.status !== 503) return;
  } catch {
    note.textContent = "The server is away. Its answer is waited for.";
  }
  setTimeout(() => start(entry, line, note), AGAIN_MS);
}

function follow(entry, line, note) {
  const events = new EventSource(`/runs/events?session_id=${entry.session}`); // comes again by itself
  const on = (kind, act) => events.addEventListener(kind, (event) => act(JSON.parse(event.data)));
  events.onopen = () => (note.textContent = "");
  events.onerror = () => (note.textContent = "The server is away. Its answer is waited for.");
  on("words", (told) => (line.textContent = (told.anew ? "" : line.textContent) + told.text));
  on("begun", (told) => (note.textContent = told.what === "call" ? `${told.name} …` : ""));
  on("broken_off", () => (note.textContent = "It was cut short, and goes on."));
  on("refused", (told) => { events.close(); note.textContent = told.message; });
  on("end", () => events.close());
  on("ended", (told) => {
    if (told.what === "turn" && told.text) line.textContent = told.text;
    if (told.what !== "run") return;
    note.textContent = told.error || "";
    if (told.error) return;
    line.textContent = entry.answer = told.output;
    keep();
  });
}

chat.forEach(show);
document.getElementById("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = document.getElementById("question");
  const earlier = chat.filter((each) => each.answer !== undefined).flatMap((each) => [
    { role: "user", content: each.question },
    { role: "assistant", content: each.answer },
  ]);
  const input = [...earlier, { role: "user", content: question.value }];
  const entry = { question: question.value, input, session: `chat-${crypto.randomUUID()}` };
  chat.push(entry);
  keep();
  show(entry);
  question.value = "";
});
