"use strict";
const $ = (id) => document.getElementById(id);
const FINAL = ["completed", "failed", "cancelled"];
let source = null;

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function show(state) {
  $("status").textContent = state.status;
  $("progress").value = state.progress;
  $("percent").textContent = `${state.progress} %`;
  $("cancel").hidden = FINAL.includes(state.status);
}

async function make(body) {
  problem("");
  const answer = await fetch("reports", { method: "POST", body });
  if (!answer.ok) return problem((await answer.json()).detail);
  follow((await answer.json()).id);
}

function follow(id) {
  history.replaceState(null, "", `#${id}`); // loaded again, the page goes on with it
  if (source) source.close();
  $("report").hidden = false;
  $("result").hidden = true;
  $("log").textContent = "";
  show({ status: "waiting", progress: 0 });
  source = new EventSource(`tasks/${id}/events`); // goes on by itself after a broken connection
  source.addEventListener("log", (event) => {
    $("log").append(JSON.parse(event.data).text);
    $("log").scrollTop = $("log").scrollHeight;
  });
  source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
  source.addEventListener("status", (event) => {
    const state = JSON.parse(event.data);
    show(state);
    if (!FINAL.includes(state.status)) return;
    source.close();
    if (state.status === "completed") {
      $("download").href = $("chart").src = `reports/${id}.png`;
      $("result").hidden = false;
    } else if (state.status === "failed") {
      problem("The report could not be made; the dashboard says why.");
    }
  });
  $("cancel").onclick = async () => {
    $("cancel").disabled = true;
    await fetch(`tasks/${id}/cancel`, { method: "POST" });
    $("cancel").disabled = false;
  };
}

$("sample").addEventListener("click", () => make(new FormData()));
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const file = $("file").files[0];
  if (!file) return problem("Choose a file first, or take a sample.");
  const body = new FormData();
  body.append("file", file);
  make(body);
});
if (location.hash.length > 30) follow(location.hash.slice(1));
