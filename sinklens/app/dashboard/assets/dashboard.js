/* What the page does by itself: the strip of tokens, and saving pictures. Tokens are only ever set as text. */
const first = {};
function afterFirstView(part, key, pause) {
  first[part] = (first[part] || 0) + 1;
  const number = first[part];
  const other = (key && key.compare) || "";
  const same = first.other === other;
  first.other = part === "positions" ? other : first.other;
  if (number > 1 && (same || part !== "positions")) return key; /* somebody has chosen it */
  if (number > 1) { /* three grids are drawn first */
    return new Promise(function (done) {
      window.setTimeout(function () {
        done(first[part] > number ? window.dash_clientside.no_update : key);
      }, 250);
    });
  }
  const ends = Date.now() + 2500;
  return new Promise(function (done) {
    const look = function () {
      const grid = document.querySelector("#grid .main-svg, #pair .main-svg");
      const head = document.querySelector("#map .main-svg, #layer .main-svg, #lines svg");
      if ((!grid || !head) && Date.now() < ends) return window.setTimeout(look, 40);
      window.setTimeout(function () { done(first[part] > 1 ? window.dash_clientside.no_update : key); }, pause);
    };
    look();
  });
}

window.dash_clientside = Object.assign({}, window.dash_clientside, {
  sinklens: {
    strip: function (data, key, drawn) {
      const strip = document.getElementById("strip");
      if (!strip) return window.dash_clientside.no_update;
      if (data && strip.sinklensData !== data) {
        if (!strip.sinklensData || strip.sinklensData.text !== data.text) write(strip, data);
        strip.sinklensData = data;
        const spans = strip.querySelectorAll("[data-position]");
        data.tokens.forEach(function (token, i) {
          const place = data.places[i];
          spans[i].style.background = place < 0 ? "" : data.colours[place];
          spans[i].className = place < 0 ? "" : data.light[place] ? "light" : "dark";
        });
        strip.hidden = data.tokens.length === 0;
        listen(strip);
      }
      const token = key ? key.token : null;
      strip.querySelectorAll(".chosen").forEach(function (span) {
        span.classList.remove("chosen");
        span.removeAttribute("aria-selected");
      });
      strip.querySelectorAll("[tabindex]").forEach(function (span) {
        span.removeAttribute("tabindex");
      });
      const at = token === null || token === undefined ? null : strip.querySelector('[data-position="' + token + '"]');
      const reachable = at || strip.querySelector("[data-position]");
      if (reachable) reachable.tabIndex = 0;
      if (at) {
        at.classList.add("chosen");
        at.setAttribute("aria-selected", "true");
        if (at.offsetTop < strip.scrollTop || at.offsetTop > strip.scrollTop + strip.clientHeight - 24) {
          strip.scrollTop = at.offsetTop - 40;
        }
      }
      return (drawn || 0) + 1;
    },

    /* Frames and lines follow the choice at once, without a new figure. */
    mark: function (headKey, tokenKey) {
      const head = /^L(\d+)H(\d+)$/.exec((headKey && headKey.head) || "");
      ["grid", "pair"].forEach(function (name) {
        const plot = document.querySelector("#" + name + " .js-plotly-plot");
        if (!plot || !plot.data || !plot.data.length) return;
        const panels = plot.data.filter(function (trace) { return trace.type === "heatmap"; }).length;
        const shapes = [];
        for (let i = 0; head && i < panels; i++) {
          const axis = i ? String(i + 1) : "";
          [["white", 5], ["#1f2933", 2.5]].forEach(function (line) {
            shapes.push({
              type: "rect", xref: "x" + axis, yref: "y" + axis, line: { color: line[0], width: line[1] },
              x0: head[2] - 0.5, x1: Number(head[2]) + 0.5, y0: head[1] - 0.5, y1: Number(head[1]) + 0.5,
            });
          });
        }
        window.Plotly.relayout(plot, { shapes: shapes });
      });
      const plot = document.querySelector("#positions .js-plotly-plot");
      if (plot && plot.layout && plot.layout.meta && plot.layout.meta.positions) {
        const at = tokenKey ? tokenKey.token : null;
        const line = { color: "#52606d", width: 1.5, dash: "dot" };
        const shapes = at === null ? [] : [{ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: line }];
        window.Plotly.relayout(plot, { shapes: shapes });
      }
      return window.dash_clientside.no_update;
    },

    /* Lines from token to token: queries left, keys right; what is pinned stays, what is pointed at is shown meanwhile. */
    lines: function (data, key, drawn) {
      const box = document.getElementById("lines");
      if (!box) return window.dash_clientside.no_update;
      box.hidden = !data || !data.tokens.length;
      if (box.hidden) {
        box.replaceChildren();
        return (drawn || 0) + 1;
      }
      const focused = box.contains(document.activeElement) && document.activeElement.dataset;
      const kept = focused ? [focused.role, focused.position] : null;
      drawLines(box, data, { token: key ? key.token : null, role: (key && key.role) || "query" });
      if (kept) {
        const again = box.querySelector('[data-role="' + kept[0] + '"][data-position="' + kept[1] + '"]');
        if (again) again.focus();
      }
      return (drawn || 0) + 1;
    },

    /* What lies below the first screen waits until that is drawn, and the token's panel a moment longer. */
    laterPositions: function (key) {
      return afterFirstView("positions", key, 150);
    },
    laterToken: function (key) {
      return afterFirstView("token", key, 600);
    },

    /* Whoever types a text means it. */
    typed: function (text) {
      return text ? "text" : window.dash_clientside.no_update;
    },

    picture: function (order) {
      if (!order || !window.Plotly) return window.dash_clientside.no_update;
      order.graphs.forEach(function (name, i) {
        const box = document.getElementById(name);
        const plot = box && box.querySelector(".js-plotly-plot");
        if (!plot || box.style.display === "none" || !plot.data || !plot.data.length) return;
        const suffix = order.graphs.length > 1 ? "-" + (i + 1) : "";
        window.Plotly.downloadImage(plot, {
          format: "png", scale: 2, width: plot.clientWidth, height: plot.clientHeight, filename: order.name + suffix,
        });
      });
      return window.dash_clientside.no_update;
    },
  },
});

const ROW = 17, LEFT = 210, RIGHT = 400, WIDE = 610, AROUND = 36, ALL = 96;

/* Which tokens have a row: all of a short text; of a long one those near the chosen one, the first ones and its ends. */
function rowsOf(data, at) {
  const count = data.tokens.length;
  if (count <= ALL) return data.tokens.map(function (_, i) { return i; });
  const middle = at === null || at === undefined ? 0 : at;
  const rows = new Set();
  for (let i = 0; i < Math.min(4, count); i++) rows.add(i);
  for (let i = Math.max(0, middle - AROUND); i < Math.min(count, middle + AROUND); i++) rows.add(i);
  data.lines.forEach(function (line) {
    if ((line[0] === middle || line[1] === middle) && line[2] > 0.02 && rows.size < 2 * ALL) {
      rows.add(line[0]);
      rows.add(line[1]);
    }
  });
  return [...rows].sort(function (a, b) { return a - b; });
}

function svg(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  Object.keys(attributes).forEach(function (name) { made.setAttribute(name, attributes[name]); });
  return made;
}

function drawLines(box, data, pinned) {
  const rows = rowsOf(data, pinned.token);
  const place = new Map(rows.map(function (position, i) { return [position, i]; }));
  const y = function (position) { return 26 + ROW * place.get(position); };
  const picture = svg("svg", { width: WIDE, height: 34 + ROW * rows.length, role: "group" });
  picture.setAttribute("aria-label", "lines of " + data.head + " from queries to keys");
  const strokes = svg("g", {}), words = svg("g", {});
  [["query", LEFT, "end"], ["key", RIGHT, "start"]].forEach(function (side) {
    const title = svg("text", { x: side[1], y: 10, "text-anchor": side[2], class: "title" });
    title.textContent = side[0] === "query" ? "query" : "key";
    words.appendChild(title);
    rows.forEach(function (position) {
      const chosen = pinned.token === position && pinned.role === side[0];
      const word = svg("text", {
        x: side[1] + (side[0] === "query" ? -4 : 4), y: y(position) + 4, "text-anchor": side[2],
        tabindex: chosen || (pinned.token === null && position === rows[0]) ? 0 : -1, role: "button",
        "data-role": side[0], "data-position": position, class: chosen ? "chosen" : "",
      });
      const token = data.tokens[position];
      word.textContent = position + " " + (token.length > 22 ? token.slice(0, 21) + "…" : token);
      word.setAttribute("aria-label", side[0] + " " + position + " " + token);
      words.appendChild(word);
    });
  });
  picture.appendChild(strokes);
  picture.appendChild(words);
  box.replaceChildren(picture);
  const show = function (token, role) {
    const column = role === "query" ? 0 : 1;
    const fresh = [];
    words.querySelectorAll(".end").forEach(function (word) { word.classList.remove("end"); });
    data.lines.forEach(function (line) {
      const own = token === null ? line[2] >= 0.3 : line[column] === token;
      if (!own || !place.has(line[0]) || !place.has(line[1])) return;
      const stroke = svg("line", {
        x1: LEFT, y1: y(line[0]), x2: RIGHT, y2: y(line[1]), "stroke-width": 0.7 + 3 * line[2],
        "stroke-opacity": Math.max(0.12, Math.pow(line[2], 0.6)), "data-weight": line[2],
      });
      const title = svg("title", {});
      title.textContent = "query " + line[0] + " → key " + line[1] + ": weight " + line[2];
      stroke.appendChild(title);
      fresh.push(stroke);
      if (token !== null) {
        const other = column ? ["query", line[0]] : ["key", line[1]];
        const word = words.querySelector('[data-role="' + other[0] + '"][data-position="' + other[1] + '"]');
        if (word && line[2] >= 0.02) {
          word.classList.add("end");
          word.dataset.weight = line[2];
        }
      }
    });
    strokes.replaceChildren(...fresh);
  };
  show(pinned.token, pinned.role);
  const pick = function (word) {
    window.dash_clientside.set_props("line-pick", {
      data: { position: Number(word.dataset.position), role: word.dataset.role, at: Date.now() },
    });
  };
  picture.addEventListener("mouseover", function (event) {
    const word = event.target.closest("[data-role]");
    if (word) show(Number(word.dataset.position), word.dataset.role);
  });
  picture.addEventListener("mouseleave", function () { show(pinned.token, pinned.role); });
  picture.addEventListener("focusin", function (event) {
    const word = event.target.closest("[data-role]");
    if (word) show(Number(word.dataset.position), word.dataset.role);
  });
  picture.addEventListener("click", function (event) {
    const word = event.target.closest("[data-role]");
    if (word) pick(word);
  });
  picture.addEventListener("keydown", function (event) {
    const word = event.target.closest("[data-role]");
    if (!word) return;
    const at = place.get(Number(word.dataset.position));
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    let next = null;
    if (event.key === "Enter" || event.key === " ") pick(word);
    else if (down && rows[at + down] !== undefined) next = [word.dataset.role, rows[at + down]];
    else if (event.key === "ArrowLeft") next = ["query", rows[at]];
    else if (event.key === "ArrowRight") next = ["key", rows[at]];
    else return;
    event.preventDefault();
    const to = next && words.querySelector('[data-role="' + next[0] + '"][data-position="' + next[1] + '"]');
    if (to) to.focus();
  });
}

/* Arrow keys on the grid move the chosen head; several presses in a row are sent together. */
let steps = { layers: 0, heads: 0 }, waiting = null;
document.addEventListener("keydown", function (event) {
  const grid = event.target.closest && event.target.closest("#grid-keys");
  const move = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
  if (!grid || !move || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  steps = { layers: steps.layers + move[0], heads: steps.heads + move[1] };
  window.clearTimeout(waiting);
  waiting = window.setTimeout(function () {
    window.dash_clientside.set_props("head-step", { data: Object.assign({ at: Date.now() }, steps) });
    steps = { layers: 0, heads: 0 };
  }, 60);
});

function write(strip, data) {
  const pieces = document.createDocumentFragment();
  const breaks = new Set(data.breaks || []);
  data.tokens.forEach(function (token, i) {
    const span = document.createElement("span");
    span.textContent = token;
    span.dataset.position = data.first + i;
    span.setAttribute("role", "option");
    span.setAttribute("aria-label", "token " + (data.first + i) + " " + token);
    pieces.appendChild(span);
    if (breaks.has(i)) pieces.appendChild(document.createElement("br"));
  });
  strip.replaceChildren(pieces);
}

function listen(strip) {
  if (strip.dataset.listens) return;
  strip.dataset.listens = "yes";
  const pick = function (span) {
    window.dash_clientside.set_props("strip-pick", {
      data: { position: Number(span.dataset.position), at: Date.now() },
    });
  };
  strip.addEventListener("mouseover", function (event) {
    const span = event.target.closest("[data-position]");
    const data = strip.sinklensData;
    if (!span || !data) return;
    const i = Number(span.dataset.position) - data.first;
    span.title = "position " + span.dataset.position + ": " + data.tokens[i] + "\nattention received " + data.values[i];
  });
  strip.addEventListener("click", function (event) {
    const span = event.target.closest("[data-position]");
    if (span) pick(span);
  });
  strip.addEventListener("keydown", function (event) {
    const span = event.target.closest("[data-position]");
    if (!span) return;
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const end = { Home: 0, End: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      pick(span);
    } else if (step || end !== undefined) {
      const all = [...strip.querySelectorAll("[data-position]")];
      const next = step ? all[all.indexOf(span) + step] : all.at(end);
      if (!next) return;
      span.removeAttribute("tabindex");
      next.tabIndex = 0;
      next.focus();
    } else {
      return;
    }
    event.preventDefault();
  });
}
