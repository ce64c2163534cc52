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

  const shown = (card) => { // what its owner calls it; of a long path the middle goes, as its end says most
    const all = [...(card.p || card.k)];
    return card.p && all.length > 120 ? `${all.slice(0, 40).join("")}…${all.slice(-79).join("")}` : all.join("");
  };
  const key = (card) => { // wrapped where a reader would
    const span = make("span", "key");
    for (const part of shown(card).match(/[^/_-]+[/_-]*|[/_-]+/g) || []) span.append(part, make("wbr"));
    return span;
  };
  const called = (card) => (card.p ? `file ${card.p}` : `key ${card.k}`);

  function side(kind, word, name, picture, alt, why) {
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
    caption.append(mark(kind), ` ${word} `, name);
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
    for (const [i, of] of [card, card.w].entries()) {
      const image = make("img");
      image.alt = `${i ? "the same part of its witness" : "the part that both show, of the dropped one"}, ${called(of)}`;
      fill(image, card.al[i]);
      both.append(image);
    }
    figure.append(both, make("figcaption", "", "the part that both show, laid alike"));
    return figure;
  }

  function draw(card) {
    const article = make("article", "card");
    article.tabIndex = 0;
    const what = [WORDS[card.st], card.r, card.c && `class ${card.c}`, called(card)].filter(Boolean).join(", ");
    article.setAttribute("aria-label", what);
    const pair = make("div", card.w ? "pair" : "pair single");
    pair.append(side(card.st, WORDS[card.st], key(card), card.t, what, card.why));
    if (card.w) {
      const role = card.w.st === "evaluation" ? `of ${card.w.pool}` : card.w.st === "dropped" ? `dropped later, at ${card.w.s}` : WORDS[card.w.st];
      pair.append(side(card.w.st, role, key(card.w), card.w.t, `its witness, ${role}, ${called(card.w)}`, "no picture"));
    }
    article.append(pair);
    const why = make("p", "why");
    why.append(make("b", "", card.st === "kept" ? "kept" : `${card.s}: ${card.r}`));
    const more = [card.c, source ? card.src : ""].filter(Boolean).join(" · ");
    if (more) why.append(` · ${more}`);
    article.append(why);
    if (against(card)) article.append(make("p", "score", against(card)));
    if (tried && tried.fates.has(card)) {
      const fate = tried.fates.get(card), line = make("p", "would");
      line.append(mark(fate[0]), ` at ${tried.name}: would be ${told(fate)}`);
      article.append(line);
    }
    if (card.ch) article.append(make("p", "change", card.ch));
    if (card.al) article.append(alike(card));
    if (card.cap) article.append(make("p", "cap", card.cap));
    const life = make("details");
    life.append(make("summary", "", "its life"));
    const list = make("ol", "life");
    for (const [stage, verdict, score] of card.life) list.append(make("li", "", `${stage}: ${verdict}${score ? `, ${score}` : ""}`));
    life.append(list, make("p", "uid", card.u));
    if (card.p) life.append(make("p", "uid", card.k));
    article.append(life);
    return article;
  }

  const find = byId("find"), fate = byId("f-fate"), klass = byId("f-class"), source = byId("f-source"), order = byId("f-order");
  let page = 0, found = [], tried = null; // tried: the limit that a slider stands at, {name, fates: card -> fate, only: show no other cards}
  const told = ([status, stage, reason]) => (status === "kept" ? "kept" : `${WORDS[status]} by ${stage}: ${reason}`);

  function chosen() {
    return { fate: fate.value, class: klass ? klass.value : "", source: source ? source.value : "", find: find.value.trim().toLowerCase() };
  }

  function fits(card, want) {
    if (tried && tried.only && !tried.fates.has(card)) return false;
    if (want.fate && `${card.st}|${card.s}|${card.r}` !== want.fate) return false;
    if (want.class && card.c !== want.class) return false;
    if (want.source && card.src !== want.source) return false;
    if (!want.find) return true;
    const names = [card, card.w].filter(Boolean).flatMap((one) => [one.u, one.k, one.p || ""]).map((name) => name.toLowerCase());
    const isBelow = card.p && want.find.endsWith(`/${card.p.toLowerCase()}`); // a path from outside the folder
    return isBelow || names.some((name) => name.includes(want.find)) || card.cap.toLowerCase().includes(want.find);
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
    if (tried && tried.only) line = `${count(found.length)} card${found.length === 1 ? "" : "s"} of samples that ${tried.name} would change`;
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
  document.querySelector("form.filters").addEventListener("reset", () => { find.value = ""; if (tried) tried.only = false; setTimeout(refresh); });
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
      const x = `${steps[at].at}%`;
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

  // the same with stops that are replays

  const STRIP = 24;
  const signed = (n) => (n === 0 ? "±0" : n > 0 ? `+${count(n)}` : `−${count(-n)}`);

  function thumb(card, fate) {
    const figure = make("figure", `thumb ${fate[0]}`), caption = make("figcaption");
    if (card.t === null) {
      figure.append(make("span", "none", "no picture"));
    } else {
      const image = make("img");
      image.alt = `${called(card)}, would be ${told(fate)}`;
      fill(image, card.t);
      figure.append(image);
    }
    caption.append(mark(fate[0]), ` ${told(fate)} `, make("span", "was", `now ${told([card.st, card.s, card.r])}`), " ", key(card));
    figure.append(caption);
    return figure;
  }

  document.querySelectorAll("[data-s]").forEach((box, i) => {
    const { stage, parameter, now, stops, fates, held } = data.stops[i];
    const slider = box.querySelector("input"), said = box.querySelector(".said"), rows = box.querySelectorAll(".beside tbody tr");
    const moved = box.querySelector(".moved"), strip = box.querySelector(".strip"), more = box.querySelector(".more"), all = more.querySelector("button");
    const limit = box.querySelector("svg.chart .limit"), line = limit && limit.cloneNode();
    if (line) {
      line.setAttribute("class", "tried");
      limit.parentNode.append(line);
    }
    function tell() {
      const at = Number(slider.value), stop = stops[at], run = stops[now], difference = stop.kept - run.kept;
      const name = `${parameter} ${stop.limit}`;
      slider.setAttribute("aria-valuetext", name);
      if (line) {
        for (const end of ["x1", "x2"]) line.setAttribute(end, `${stop.at}%`);
        line.setAttribute("visibility", at === now ? "hidden" : "visible");
      }
      const change = difference === 0 ? "as many as" : `${count(Math.abs(difference))} ${difference > 0 ? "more" : "fewer"} than`;
      said.textContent = at === now
        ? `${name}, as in this run: ${count(stop.kept)} kept.`
        : `${name}: ${count(stop.kept)} kept, ${change} in this run (${count(run.kept)}); ${count(stop.changed)} sample${stop.changed === 1 ? " has" : "s have"} another fate.`;
      rows.forEach((row, k) => {
        const [dropped, more, left] = row.querySelectorAll(".tried");
        dropped.textContent = count(stop.funnel[k][1]);
        more.textContent = signed(stop.funnel[k][1] - run.funnel[k][1]);
        left.textContent = count(stop.funnel[k][2]);
        row.classList.toggle("differs", stop.funnel[k][1] !== run.funnel[k][1] || stop.funnel[k][2] !== run.funnel[k][2]);
      });
      const cards = stop.moves.map(([card, fate]) => [data.cards[card], fates[fate]]);
      moved.textContent = at === now ? "" : `Of the ${count(held)} samples with a card on this page, ${count(cards.length)} would have another fate${cards.length ? ":" : "."}`;
      strip.replaceChildren(...cards.slice(0, STRIP).map(([card, fate]) => thumb(card, fate)));
      more.hidden = cards.length === 0;
      all.textContent = `show ${cards.length === 1 ? "its card" : `all ${count(cards.length)} as cards`}`;
      return at === now ? null : { name: `${parameter} ${stop.limit} of ${stage}`, fates: new Map(cards), only: false };
    }
    slider.addEventListener("input", () => { tried = tell(); refresh(); });
    all.addEventListener("click", () => {
      tried = { ...tell(), only: true };
      refresh();
      byId("h-gallery").focus();
      byId("gallery").scrollIntoView();
    });
    tell();
  });

  refresh();
})();
