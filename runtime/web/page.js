// The example page: load a bundle, let it write, measure it.
import { Model } from "./client.js";

const $ = (id) => document.getElementById(id);
const FIGURES = [
  ["device", (p) => p.device],
  ["engine", (p) => `${p.engine}, ${p.threads} threads`],
  ["weights", (p) => `${(p.weight_bytes / 1e6).toFixed(1)} MB`],
  ["load", (p) => `${p.load_s.toFixed(3)} s`],
  ["first token, p50", (p) => `${p.ttft_ms_p50.toFixed(1)} ms`],
  ["prefill, p50", (p) => `${p.prefill_tok_s_p50.toFixed(0)} tok/s`],
  ["decode, p50", (p) => `${p.decode_tok_s_p50.toFixed(1)} tok/s`],
  ["decode, p90", (p) => `${p.decode_ms_p90.toFixed(2)} ms/token`],
  ["peak memory", () => "not measured"],
  ["energy", () => "not measured"],
];
let model = null;
let stopping = null;

function say(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

function enable(ready) {
  for (const form of ["write", "measure"]) $(form).querySelector("button").disabled = !ready;
  $("stop").disabled = ready || stopping === null;
}

/** Run `work` on submit of the form; what it throws is said in one line. */
function onSubmit(form, work) {
  $(form).addEventListener("submit", async (event) => {
    event.preventDefault();
    enable(false);
    try {
      await work();
    } catch (fault) {
      say(fault.message, true);
    }
    stopping = null;
    enable(model !== null);
  });
}

onSubmit("open", async () => {
  model?.close();
  model = null;
  const name = $("bundle").value;
  $("loading").hidden = false;
  try {
    say(`Loading ${name} …`);
    const threads = Number($("threads").value) || undefined;
    const onBytes = (done, total) => ($("loading").value = total ? done / total : 0);
    model = await Model.open(`bundles/${encodeURIComponent(name)}/`, { threads, onBytes });
    say(`${name} is ready: ${model.about.threads} threads.`);
  } finally {
    $("loading").hidden = true;
  }
});

onSubmit("write", async () => {
  stopping = new AbortController();
  enable(false);
  $("text").textContent = $("prompt").value;
  const options = { maxNewTokens: Number($("count").value), temperature: Number($("temperature").value) };
  const started = performance.now();
  for await (const piece of model.generate($("prompt").value, { ...options, signal: stopping.signal })) {
    $("text").append(piece);
  }
  say(`Written in ${((performance.now() - started) / 1e3).toFixed(2)} s.`);
});

onSubmit("measure", async () => {
  const options = Object.fromEntries(["promptTokens", "newTokens", "repeats"].map((id) => [id, Number($(id).value)]));
  const profile = await model.profile(options, (done, total) => say(`Run ${done} of ${total} …`));
  const rows = FIGURES.map(([name, show]) => {
    const row = document.createElement("tr");
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent: name }));
    row.append(Object.assign(document.createElement("td"), { textContent: show(profile) }));
    return row;
  });
  $("figures").tBodies[0].replaceChildren(...rows);
  $("figures").hidden = false;
  URL.revokeObjectURL($("save").href);
  $("save").href = URL.createObjectURL(new Blob([JSON.stringify(profile, null, 1)], { type: "application/json" }));
  $("save").hidden = false;
  say("Measured.");
});

$("stop").addEventListener("click", () => stopping?.abort());

const names = await (await fetch("bundles.json")).json();
$("bundle").replaceChildren(...names.map((name) => new Option(name)));
