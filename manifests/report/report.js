"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 24;
  const byId = (id) => document.getElementById(id);
  const count = (n) => n.toLocaleString("en-US");
  const WORDS = { kept: "kept", dropped: "dropped", quarantined: "quarantined", evaluation: "test picture", missing: "missing" };

  function make(tag, kind, words) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (words !== undefined) element.textContent = words;
    return element;
  }

  function mark(kind) {
    const found = byId(`mark-${kind}`) || byId("mark-quarantined");
    return found.content.cloneNode(true);
  }

  function fill(image, number) {
    image.src = data.pictures[number];
    if (Math.max(...data.sizes[number]) <= 64) image.classList.add("small");
  }

  for (const image of document.querySelectorAll("img[data-t]")) fill(image, Number(image.dataset.t));

  // the gallery

  function side(kind, word, key, picture, alt, why) {
    const figure = make("figure", `side ${kind}`);
    const frame = make("div", "frame");
    if (picture === null) {
      frame.append(make("span", "none", why || "no picture"));
    } else {
      const image = make("img");
      image.alt = alt;
      fill(image, picture);
      frame.append(image);
    }
    const caption = make("figcaption");
    caption.append(mark(kind), ` ${word} `, make("span", "key", key));
    figure.append(frame, caption);
    return figure;
  }

  function against(card) {
    if (card.sc === null) return "";
    const score = `score ${Number(card.sc.toPrecision(4))}`;
    if (card.th === null) return score;
    const sign = card.sc > card.th ? ">" : card.sc < card.th ? "<" : "=";
    const by = card.sc === card.th ? "" : ` (by ${Number(Math.abs(card.sc - card.th).toPrecision(3))})`;
    return `${score} ${sign} limit ${Number(card.th.toPrecision(4))}${by}`;
  }

  function alike(card) {
    const figure = make("figure", "alike"), both = make("div", "both");
    for (const [i, key] of [card.k, card.w.k].entries()) {
      const image = make("img");
      image.alt = `${i ? "the same part of its witness" : "the part that both show, of the dropped one"}, key ${key}`;
      fill(image, card.al[i]);
      both.append(image);
    }
    figure.append(both, make("figcaption", "", "the part that both show, laid alike"));
    return figure;
  }

  function draw(card) {
    const article = make("article", "card");
    article.tabIndex = 0;
    const what = [WORDS[card.st], card.r, card.c && `class ${card.c}`, `key ${card.k}`].filter(Boolean).join(", ");
    article.setAttribute("aria-label", what);
    const pair = make("div", card.w ? "pair" : "pair single");
    pair.append(side(card.st, WORDS[card.st], card.k, card.t, what, card.why));
    if (card.w) {
      const role = card.w.st === "evaluation" ? `of ${card.w.pool}` : card.w.st === "dropped" ? `dropped later, at ${card.w.s}` : WORDS[card.w.st];
      pair.append(side(card.w.st, role, card.w.k, card.w.t, `its witness, ${role}, key ${card.w.k}`, "no picture"));
    }
    article.append(pair);
    const why = make("p", "why");
    why.append(make("b", "", card.st === "kept" ? "kept" : `${card.s}: ${card.r}`));
    const more = [card.c, source ? card.src : ""].filter(Boolean).join(" · ");
    if (more) why.append(` · ${more}`);
    article.append(why);
    if (against(card)) article.append(make("p", "score", against(card)));
    if (card.ch) article.append(make("p", "change", card.ch));
    if (card.al) article.append(alike(card));
    if (card.cap) article.append(make("p", "cap", card.cap));
    const life = make("details");
    life.append(make("summary", "", "its life"));
    const list = make("ol", "life");
    for (const [stage, verdict, score] of card.life) list.append(make("li", "", `${stage}: ${verdict}${score ? `, ${score}` : ""}`));
    const uid = make("p", "uid", card.u);
    life.append(list, uid);
    article.append(life);
    return article;
  }

  const find = byId("find"), fate = byId("f-fate"), klass = byId("f-class"), source = byId("f-source"), order = byId("f-order");
  let page = 0, found = [];

  function chosen() {
    return { fate: fate.value, class: klass ? klass.value : "", source: source ? source.value : "", find: find.value.trim().toLowerCase() };
  }

  function fits(card, want) {
    if (want.fate && `${card.st}|${card.s}|${card.r}` !== want.fate) return false;
    if (want.class && card.c !== want.class) return false;
    if (want.source && card.src !== want.source) return false;
    if (!want.find) return true;
    const names = [card.u, card.k, card.w ? card.w.u : "", card.w ? card.w.k : ""];
    return names.some((name) => name.toLowerCase().includes(want.find)) || card.cap.toLowerCase().includes(want.find);
  }

  function inLedger(want) {
    let sum = 0;
    for (const [status, stage, reason, name, from, n] of data.counts) {
      if (want.fate && `${status}|${stage}|${reason}` !== want.fate) continue;
      if (want.class && name !== want.class) continue;
      if (want.source && from !== want.source) continue;
      sum += n;
    }
    return sum;
  }

  function sorted(cards) {
    const by = order.value;
    const score = (card, none) => (card.sc === null ? none : card.sc);
    if (by === "high") return [...cards].sort((a, b) => score(b, -Infinity) - score(a, -Infinity) || (a.u < b.u ? -1 : 1));
    if (by === "low") return [...cards].sort((a, b) => score(a, Infinity) - score(b, Infinity) || (a.u < b.u ? -1 : 1));
    if (by === "uid") return [...cards].sort((a, b) => (a.u < b.u ? -1 : 1));
    return cards;
  }

  function show() {
    const box = byId("cards"), start = page * PER_PAGE;
    box.replaceChildren(...found.slice(start, start + PER_PAGE).map(draw));
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page + 1 >= pages;
  }

  function refresh() {
    const want = chosen();
    found = sorted(data.cards.filter((card) => fits(card, want)));
    page = 0;
    const total = inLedger(want);
    let line = `${count(found.length)} card${found.length === 1 ? "" : "s"} of ${count(total)} sample${total === 1 ? "" : "s"}`;
    if (want.find) line = found.length
      ? `${count(found.length)} card${found.length === 1 ? "" : "s"} match “${find.value.trim()}”`
      : `No card here matches “${find.value.trim()}”. Ask for any sample: manifests explain ${data.run} ${find.value.trim()}`;
    byId("status").textContent = line;
    show();
  }

  function turn(step) {
    const pages = Math.ceil(found.length / PER_PAGE);
    if (page + step < 0 || page + step >= pages) return;
    page += step;
    show();
    byId("h-gallery").focus();
  }

  for (const input of [fate, klass, source, order]) if (input) input.addEventListener("change", refresh);
  find.addEventListener("input", refresh);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  document.querySelector("form.filters").addEventListener("reset", () => { find.value = ""; setTimeout(refresh); });
  document.querySelector("form.find").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("gallery").scrollIntoView();
    const first = document.querySelector(".card");
    if (first) first.focus();
  });

  function step(by) {
    const cards = [...document.querySelectorAll(".card")];
    if (!cards.length) return;
    const at = cards.indexOf(document.activeElement.closest(".card"));
    const next = at < 0 ? 0 : Math.min(cards.length - 1, Math.max(0, at + by));
    cards[next].focus();
    cards[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const focus = document.activeElement;
    if (focus && /^(INPUT|SELECT|TEXTAREA)$/.test(focus.tagName)) {
      if (event.key === "Escape") focus.blur();
      return;
    }
    const card = focus && focus.classList.contains("card");
    if (event.key === "/") { event.preventDefault(); find.focus(); }
    else if (event.key === "j" || (card && event.key === "ArrowRight")) { event.preventDefault(); step(1); }
    else if (event.key === "k" || (card && event.key === "ArrowLeft")) { event.preventDefault(); step(-1); }
    else if (event.key === "n" || event.key === "p") turn(event.key === "n" ? 1 : -1);
    else if (event.key === "?") { document.querySelector(".keys").open = true; document.querySelector(".keys summary").focus(); }
    else if (event.key === "Enter" && card) { const life = focus.querySelector("details"); life.open = !life.open; }
  });

  // what if

  document.querySelectorAll("[data-w]").forEach((box, i) => {
    const { steps, now, sign, unit } = data.what_if[i];
    const slider = box.querySelector("input"), said = box.querySelector(".said"), chart = box.querySelector("svg.chart"), limit = chart.querySelector(".limit");
    const line = limit.cloneNode();
    line.setAttribute("class", "tried");
    chart.append(line);
    function tell() {
      const at = Number(slider.value), more = steps[at].gone - steps[now].gone;
      const x = `${(100 * at) / (steps.length - 1)}%`;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      slider.setAttribute("aria-valuetext", `limit ${steps[at].limit}`);
      const change = more === 0 ? "as many as in this run" : `${count(Math.abs(more))} ${more > 0 ? "more" : "fewer"} than in this run (${count(steps[now].gone)})`;
      said.textContent = `Limit ${steps[at].limit}: ${count(steps[at].gone)} ${unit} ${sign} it, ${change}.`;
      line.setAttribute("visibility", at === now ? "hidden" : "visible");
    }
    slider.addEventListener("input", tell);
    tell();
  });

  refresh();
})();
