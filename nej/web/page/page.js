"use strict";

const EXAMPLES = [
  ["Grasping unknown objects with one camera",
   "We present a robot arm that picks up objects it has never seen before. A single camera " +
   "looks at the table; a small network proposes grasps, and a second one, trained in simulation " +
   "alone, judges whether each would hold. On 120 household objects the arm succeeds in 94 % of " +
   "its attempts, without a model of the objects and without retraining."],
  ["What do translation models know about word order?",
   "Neural machine translation between languages of very different word order still fails on long " +
   "sentences. We probe what encoders know of syntax, layer by layer, for eleven languages, and " +
   "find that reordering is decided late. A loss that rewards early decisions improves BLEU by " +
   "1.3 points on sentences of over 40 words."],
  ["Tighter generalization bounds for kernel regression",
   "We study kernel ridge regression where the eigenvalues of the kernel decay polynomially. " +
   "Using a localized Rademacher complexity we derive bounds on the excess risk that hold with " +
   "high probability, and show that they are minimax optimal up to logarithmic factors. Numerical " +
   "experiments agree with the predicted rates."],
];
const byId = (id) => document.getElementById(id);
const form = byId("form"), summary = byId("summary"), title = byId("title"), token = byId("token");
const percent = (share) => `${(100 * share).toFixed(1)} %`;
let examples = 0, sending = null;

function make(kind, className, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token.value) headers.Authorization = `Bearer ${token.value}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service cannot be reached. Is the connection there?");
  }
  if (answer.ok) return answer.json();
  const { detail } = await answer.json().catch(() => ({}));
  const found = new Error(detail ? sentence(detail) : `The service answered ${answer.status}.`);
  found.status = answer.status;
  throw found;
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1).replace(/\.?$/, ".");

function showProblem(text, field) {
  const problem = byId("problem");
  problem.textContent = text;
  problem.hidden = !text;
  for (const one of [summary, token]) one.removeAttribute("aria-invalid");
  if (field) {
    field.setAttribute("aria-invalid", "true");
    field.focus();
  }
}

function showAnswer({ predictions: [found], threshold }) {
  const [best] = found.categories;
  byId("verdict").replaceChildren(
    found.abstained ? "Not sure enough to say. The most probable is " : "",
    make("strong", "", best.name), ` (${best.code}), with ${percent(best.probability)}.`);
  byId("bars").replaceChildren(...found.categories.map((category) => {
    const line = make("li", ""), what = make("div", "what"), track = make("div", "track");
    what.append(make("b", "", category.code), make("span", "name", category.name),
                make("span", "percent", percent(category.probability)));
    const bar = make("div", "bar");
    bar.style.width = percent(category.probability).replace(" ", "");
    track.append(bar);
    if (threshold && category === best) {
      const mark = make("div", "mark");
      mark.style.left = percent(threshold).replace(" ", "");
      track.append(mark);
    }
    track.setAttribute("aria-hidden", "true");
    line.append(what, track);
    return line;
  }));
  const legend = byId("legend");
  legend.hidden = !threshold;
  legend.replaceChildren(make("span", "key-mark"),
    `Under ${percent(threshold ?? 0)} the model does not commit itself.`);
  byId("truncated").hidden = !found.truncated;
  byId("result").className = "answered";
}

function showBusy(busy) {
  if (busy) byId("send").setAttribute("aria-disabled", "true");
  else byId("send").removeAttribute("aria-disabled");
  byId("result").classList.toggle("stale", busy);
}

async function send() {
  sending?.abort();
  const mine = sending = new AbortController();
  if (!summary.value.trim()) {
    showBusy(false);
    return showProblem("There is no summary yet. Paste one, or try the example.", summary);
  }
  showProblem("");
  showBusy(true);
  try {
    const answer = await ask("predict", {
      method: "POST", headers: { "Content-Type": "application/json" }, signal: mine.signal,
      body: JSON.stringify({ title: title.value, summary: summary.value }),
    });
    showAnswer(answer);
    if (window.matchMedia("(max-width: 55.99rem)").matches) {
      byId("result").scrollIntoView({ block: "nearest" });
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) byId("token-field").hidden = false;
    showProblem(error.message, { 401: token, 422: summary }[error.status]);
  } finally {
    if (sending === mine) showBusy(false);
  }
}

async function describe() {
  let model;
  try {
    model = await ask("model");
  } catch (error) {
    if (error.status === 401) byId("token-field").hidden = false;
    byId("facts").replaceChildren(make("dt", "", "Model"), make("dd", "", error.message));
    return;
  }
  const judged = model.metrics.test ?? model.metrics.validation ?? {};
  const interval = judged.intervals?.accuracy;
  const facts = {
    Model: `${model.model}, version ${model.version}, trained ${model.trained.slice(0, 10)}`,
    Categories: model.classes.map(({ code }) => code).join(", "),
    Reads: `${model.reads === "summary" ? "the summary" : "title and summary"}, about the first ` +
      `${Math.round(model.max_length * 0.7 / 10) * 10} words`,
  };
  if (judged.accuracy) {
    facts[model.metrics.test ? "Accuracy" : "Accuracy in validation"] = `${percent(judged.accuracy)}` +
      (judged.papers ? ` on ${judged.papers.toLocaleString("en")} test papers` : "") +
      (interval ? ` (95 % interval ${percent(interval[0])} to ${percent(interval[1])})` : "");
  }
  facts.Abstains = model.threshold === null ? "never" :
    `under ${percent(model.threshold)}: above it ${percent(model.wanted_accuracy)} of its answers ` +
    "were right on validation papers";
  facts.Data = `${model.data.path}, ${model.papers.train.toLocaleString("en")} training papers`;
  byId("facts").replaceChildren(...Object.entries(facts).flatMap(
    ([name, text]) => [make("dt", "", name), make("dd", "", text)]));
  byId("title-hint").hidden = model.reads !== "summary";
  byId("card-text").textContent = model.card.replace(/^---\n[^]*?\n---\n/, "");
  byId("card").hidden = false;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (byId("card").hidden) describe();  // the facts are not there yet
  send();
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
byId("example").addEventListener("click", () => {
  [title.value, summary.value] = EXAMPLES[examples++ % EXAMPLES.length];
  send();
});
describe();
