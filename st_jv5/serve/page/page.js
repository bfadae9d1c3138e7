"use strict";
// Texts go to this server alone, and stand on the page as text, never as HTML.

const by = (id) => document.getElementById(id);
const lines = (id) => by(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

async function call(path, body) {
  const headers = { "Content-Type": "application/json" };
  if (by("key").value) headers.Authorization = `Bearer ${by("key").value}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  const told = await answer.json();
  if (answer.status === 401) by("secret").hidden = false;
  if (!answer.ok) throw new Error(told.error.message);
  return told;
}

async function embed(texts, name, prompt_name) {
  const body = { model: name, input: texts, encoding_format: "float" };
  if (prompt_name) body.prompt_name = prompt_name;
  const told = await call("v1/embeddings", body);
  return told.data.map((row) => row.embedding); // of unit length: their product is the cosine
}

const cosine = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function make(tag, text, parent, kind) {
  const node = document.createElement(tag);
  if (text !== null) node.textContent = text;
  if (kind) node.className = kind;
  parent.append(node);
  return node;
}

function table(parent, about, header, rows) {
  const box = make("div", null, parent, "wide");
  box.tabIndex = 0; // scrolls by keyboard
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", about);
  const made = make("table", null, box);
  make("caption", about, made);
  const top = make("tr", null, make("thead", null, made));
  header.forEach((cell) => (make("th", cell, top).scope = "col"));
  const body = make("tbody", null, made);
  for (const row of rows) {
    const line = make("tr", null, body);
    row.forEach((cell, i) => {
      if (i === 0) make("th", cell, line).scope = "row";
      else make("td", typeof cell === "number" ? cell.toFixed(3) : cell, line, typeof cell === "number" ? "number" : "");
    });
  }
}

const short = (text) => (text.length > 40 ? `${text.slice(0, 39)}…` : text);

async function column(name, texts, corpus) {
  const asks = name.endsWith("/retrieval"); // texts are questions, sentences are documents
  const [asked, found, own] = await Promise.all([
    embed(texts, name, asks ? "query" : null),
    embed(corpus, name, null),
    asks ? embed(texts, name, null) : null,
  ]);
  const nearest = texts.flatMap((text, i) =>
    found
      .map((vector, j) => [cosine(asked[i], vector), corpus[j]])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 3)
      .map(([score, sentence], rank) => [rank ? "" : short(text), score, sentence]),
  );
  const vectors = own || asked;
  const likeness = texts.map((text, i) => [short(text), ...vectors.map((vector) => cosine(vectors[i], vector))]);
  return { name, nearest, likeness };
}

function show({ name, nearest, likeness }, texts) {
  const section = make("section", null, by("results"));
  make("h2", name.split("/").at(-1), section);
  table(section, "Nearest sentences", ["text", "cosine", "sentence"], nearest);
  table(section, "Cosines among the texts", ["", ...texts.map((_, i) => String(i + 1))], likeness.map((row, i) => [`${i + 1} ${row[0]}`, ...row.slice(1)]));
}

async function compare(event) {
  event?.preventDefault();
  const status = by("status");
  status.className = "";
  status.textContent = "…";
  try {
    if (!by("left").options.length) await list();
    const [texts, corpus] = [lines("texts"), lines("corpus")];
    if (!texts.length || !corpus.length) throw new Error("type a text, and a sentence to look among");
    const columns = await Promise.all(["left", "right"].map((id) => column(by(id).value, texts, corpus)));
    by("results").replaceChildren();
    columns.forEach((one) => show(one, texts));
    status.textContent = `${texts.length} texts, ${corpus.length} sentences`;
  } catch (error) {
    status.className = "error";
    status.textContent = error.message;
  }
}

async function list() {
  const { data } = await call("v1/models");
  by("name").textContent = data[0].id; // the model alone comes first
  const named = data.filter((one) => one.adapter && one.id.startsWith(`${data[0].id}/`));
  for (const id of ["left", "right"])
    for (const one of named) make("option", one.task, by(id)).value = one.id;
  by("right").selectedIndex = Math.min(1, named.length - 1);
}

by("ask").addEventListener("submit", compare);
by("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) compare(event);
});
list().catch((error) => {
  by("status").className = "error";
  by("status").textContent = error.message;
});
