"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const CONFIG = {
    displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
    modeBarButtons: [["resetScale2d", "toImage"]],
  };
  const ROWS_AT_FIRST = 400;
  const columns = new Map(DATA.columns.map((column) => [column.name, column]));
  const state = { reading: "", row: -1, role: "", sort: "", down: false, words: [], every: false, shown: ROWS_AT_FIRST };

  // Small helpers.

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== false && value !== null) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }

  const counted = (count) => count.toLocaleString("en");
  const textOf = (name, row) => (columns.has(name) ? columns.get(name).texts[row] : "");

  function color(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  }

  function themed(figure) {
    const layout = figure.layout;
    const [ground, ink, muted, rule] = ["ground", "ink", "muted", "rule"].map(color);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font.color = ink;
    Object.assign(layout.hoverlabel, { bgcolor: ground, bordercolor: muted });
    layout.hoverlabel.font.color = ink;
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: ink };
    for (const [key, axis] of Object.entries(layout)) {
      if (!/^[xy]axis/.test(key)) continue;
      Object.assign(axis, { gridcolor: rule, linecolor: rule });
      axis.tickfont.color = axis.title.font.color = muted;
    }
    for (const trace of figure.data) {
      const bar = trace.colorbar || (trace.marker && trace.marker.colorbar);
      if (bar) bar.tickfont.color = muted;
    }
    return figure;
  }

  function draw(id, figure) {
    themed(figure);
    figure.layout.width = undefined;
    return Plotly.react($(id), figure.data, figure.layout, CONFIG);
  }

  const narrow = (id) => $(id).clientWidth < 640;

  // Map: one reading over layer × role.

  function drawMap() {
    const reading = DATA.heat.readings[state.reading];
    const figure = structuredClone(DATA.heat.figure);
    const [blank, colored, texts] = figure.data;
    blank.colorscale = [[0, color("blank")], [1, color("blank")]];
    blank.z = reading.z.map((row, r) => row.map((z, l) => (z === null && reading.hover[r][l] ? 0 : null)));
    blank.hovertext = reading.hover;
    Object.assign(colored, { z: reading.z, hovertext: reading.hover, zmin: reading.zmin, zmax: reading.zmax });
    Object.assign(colored.colorbar, { tickvals: reading.tickvals, ticktext: reading.ticktext });
    // About what Plotly leaves for the cells beside the names of the roles and the scale of colours.
    const room = $("map-figure").clientWidth - 7.5 * Math.max(...colored.y.map((role) => role.length)) - 110;
    if (room / colored.x.length >= 42) writeValues(texts, colored, reading);
    const place = placeOf(state.row);
    if (place) {
      const [r, l] = place;
      figure.layout.shapes = [{
        type: "rect", x0: l - 0.5, x1: l + 0.5, y0: r - 0.5, y1: r + 0.5, line: { color: color("ink"), width: 2 },
      }];
    }
    draw("map-figure", figure);
    for (const note of document.querySelectorAll("[data-meaning]")) note.hidden = note.dataset.meaning !== state.reading;
  }

  function writeValues(texts, colored, reading) {
    Object.assign(texts, { x: [], y: [], text: [], textfont: { size: 11, color: [] } });
    for (const [r, row] of reading.z.entries()) {
      for (const [l, z] of row.entries()) {
        if (z === null) continue;
        texts.x.push(colored.x[l]);
        texts.y.push(colored.y[r]);
        texts.text.push(reading.text[r][l]);
        const t = (z - reading.zmin) / (reading.zmax - reading.zmin);
        texts.textfont.color.push(t < DATA.heat.white ? "#ffffff" : "#000000");
      }
    }
  }

  function placeOf(row) {
    for (const [r, cells] of DATA.heat.cells.entries()) {
      const l = cells.findIndex((cell) => cell.includes(row));
      if (l >= 0) return [r, l];
    }
    return null;
  }

  function chooseCell(event) {
    const cell = event.points[0].pointIndex;
    const rows = DATA.heat.cells[cell[0]][cell[1]];
    if (!rows.length) return;
    // Of several, the one in the middle: the cell shows their median.
    const values = columns.get(state.reading).values;
    const known = rows.filter((row) => values[row] !== null).sort((a, b) => values[a] - values[b]);
    choose(known.length ? known[(known.length - 1) >> 1] : rows[0], rows.length);
  }

  // One matrix.

  const FACTS = [
    "shape", "layer", "role", "dtype", "sigma_max", "sigma_min", "condition", "numerical_rank", "stable_rank",
    "effective_rank", "rank_90", "rank_99", "error_bound",
  ];

  function choose(row, among = 1, scroll = false) {
    state.row = row;
    $("name").value = String(row);
    $("matrix-note").textContent = among > 1 ? `One of ${among} matrices in this cell; the others are in the list.` : "";
    const facts = FACTS.filter((name) => columns.has(name)).map((name) => [columns.get(name).label, textOf(name, row)]);
    const nodes = facts.map(([label, text]) => element("div", {}, element("dt", {}, label), element("dd", {}, text)));
    const status = textOf("status", row);
    if (status && status !== "ok") {
      nodes.push(element("div", { class: "doubt" }, element("dt", {}, "status"), element("dd", {}, status)));
    }
    $("facts").replaceChildren(...nodes);
    drawSpectrum();
    drawMap();
    for (const line of document.querySelectorAll("#rows tbody tr")) {
      line.toggleAttribute("aria-current", Number(line.dataset.row) === row);
    }
    if (scroll) $("matrix").scrollIntoView();
  }

  function drawSpectrum() {
    const curve = DATA.curves.rows[state.row];
    $("matrix-figure").hidden = !curve;
    if (!curve) {
      $("matrix-note").textContent = "No singular values to draw.";
      return;
    }
    const index = DATA.curves.index[curve.count];
    const figure = structuredClone(DATA.spectrum);
    const [values, floor, energy, marks] = figure.data;
    Object.assign(values, { x: index, y: curve.sigma });
    if (curve.floor !== null && curve.sigma[curve.sigma.length - 1] < 100 * curve.floor) {
      Object.assign(floor, { x: [1, curve.count], y: [curve.floor, curve.floor] });
    }
    Object.assign(energy, { x: index, y: curve.energy });
    Object.assign(marks, {
      x: curve.ranks.map(([rank]) => rank), y: curve.ranks.map(([, percent]) => percent / 100),
      text: curve.ranks.map(([rank, percent]) => `${percent} %: ${counted(rank)}`),
    });
    values.line.color = energy.line.color = marks.marker.color = color("accent");
    floor.line.color = color("muted");
    const layout = figure.layout;
    [layout.xaxis.type, layout.yaxis.type] = document.querySelector("#axes input:checked").value.split(",");
    if (narrow("matrix-figure")) {
      layout.height = 640;
      layout.xaxis.domain = layout.xaxis2.domain = [0, 1];
      layout.yaxis.domain = [0.6, 1];
      layout.yaxis2.domain = [0, 0.42];
    }
    draw("matrix-figure", figure);
  }

  // Spectra of a role by layer.

  function mixed(stops, t) {
    const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const channels = [0, 1, 2].map((i) => {
      const [a, b] = [part(stops[low], i), part(stops[low + 1], i)];
      return Math.round(a + (b - a) * (place - low));
    });
    return `rgb(${channels.join(",")})`;
  }

  function drawSpectra() {
    const { figure: empty, roles, depth } = DATA.spectra;
    const figure = structuredClone(empty);
    const stops = isDark() ? DATA.spectra.dark : DATA.spectra.light;
    const chosen = roles.find((each) => each.role === state.role);
    if (depth) figure.data[0].marker.colorscale = stops.map((stop, i) => [i / (stops.length - 1), stop]);
    for (const row of chosen.rows) {
      const curve = DATA.curves.rows[row];
      const layered = depth && curve.layer !== null;
      const stroke = layered ? mixed(stops, (curve.layer - depth[0]) / (depth[1] - depth[0])) : color("accent");
      figure.data.push({
        type: "scatter", mode: "lines", showlegend: false, line: { color: stroke, width: 1.5 },
        x: DATA.curves.index[curve.count].map((i) => i / curve.size), y: curve.sigma.map((s) => s / curve.sigma[0]),
        hovertemplate: `${curve.head}<br>%{x:.3f}: %{y:.4g}<extra></extra>`,
      });
    }
    const some = chosen.of > chosen.rows.length ? ` ${chosen.rows.length} of ${chosen.of} are drawn.` : "";
    $("spectra-note").textContent = `Each line is one matrix, its singular values relative to the largest.${some}`;
    draw("spectra-figure", figure);
  }

  // Table.

  function tableColumns() {
    return DATA.columns.filter((column) => state.every || column.key);
  }

  function sortedRows() {
    const searched = DATA.columns.filter((column) => column.kind === "text");
    const rows = DATA.names.map((_, row) => row).filter((row) => {
      const line = searched.map((column) => column.texts[row]).join(" ").toLowerCase();
      return state.words.every((word) => line.includes(word));
    });
    const column = columns.get(state.sort);
    if (!column) return rows;
    const sign = state.down ? -1 : 1;
    if (!column.values) {
      return rows.sort((a, b) => sign * column.texts[a].localeCompare(column.texts[b], "en", { numeric: true }));
    }
    const missing = (row) => Number(column.values[row] === null);
    return rows.sort((a, b) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      return column.values[a] === column.values[b] ? a - b : sign * (column.values[a] - column.values[b]);
    });
  }

  function drawHeadings() {
    const cells = tableColumns().map((column) => {
      const sorted = column.name === state.sort ? (state.down ? "descending" : "ascending") : null;
      const button = element("button", { type: "button", "data-sort": column.name }, column.label);
      return element("th", { scope: "col", class: column.kind === "text" ? null : "num", "aria-sort": sorted }, button);
    });
    document.querySelector("#rows thead").replaceChildren(element("tr", {}, ...cells));
  }

  function drawRows() {
    const rows = sortedRows();
    const lines = rows.slice(0, state.shown).map((row) => {
      const cells = tableColumns().map((column) => {
        const text = column.texts[row];
        if (column.name === "name") {
          const button = element("button", { type: "button", class: "link", "data-row": row }, text);
          return element("th", { scope: "row" }, button);
        }
        const doubt = column.name === "status" && text !== "ok" && column.texts[row] !== "–";
        return element("td", { class: column.kind === "text" ? (doubt ? "doubt" : null) : "num" }, text);
      });
      return element("tr", { "data-row": row, "aria-current": row === state.row ? "true" : null }, ...cells);
    });
    document.querySelector("#rows tbody").replaceChildren(...lines);
    const all = DATA.names.length;
    $("count").textContent = `${rows.length === all ? "" : `${counted(rows.length)} of `}${counted(all)} matrices`;
    $("more").hidden = rows.length <= state.shown;
    $("more").textContent = `Show all ${counted(rows.length)}`;
  }

  // Theme.

  const isDark = () => document.documentElement.dataset.theme === "dark";

  function setTheme(name) {
    document.documentElement.dataset.theme = name;
    $("theme").textContent = name === "dark" ? "Light" : "Dark";
    $("theme").setAttribute("aria-label", `Use ${name === "dark" ? "light" : "dark"} colours`);
  }

  function drawFigures() {
    if (!$("reading")) return;
    drawMap();
    drawSpectrum();
    if (state.role) drawSpectra();
  }

  // What listens to what.

  function option(value, text) {
    return element("option", { value }, text);
  }

  function startFigures() {
    state.reading = $("reading").value;
    $("reading").addEventListener("change", () => { state.reading = $("reading").value; drawMap(); });
    $("name").replaceChildren(...DATA.names.map((name, row) => option(row, name)));
    $("name").addEventListener("change", () => choose(Number($("name").value)));
    $("axes").addEventListener("change", drawSpectrum);
    const roles = [...DATA.spectra.roles].sort((a, b) => b.of - a.of);
    $("spectra").hidden = !roles.length;
    $("role").replaceChildren(...roles.map(({ role, of }) => option(role, `${role} (${of})`)));
    state.role = roles.length ? roles[0].role : "";
    $("role").addEventListener("change", () => { state.role = $("role").value; drawSpectra(); });
    choose(mostExtreme());
    if (state.role) drawSpectra();
    $("map-figure").on("plotly_click", chooseCell);
  }

  // What the page opens with: the matrix at the top of the first reading.
  function mostExtreme() {
    const values = columns.get(state.reading).values.map((value) => (value === null ? -Infinity : Number(value)));
    return values.reduce((best, value, row) => (value > values[best] ? row : best), 0);
  }

  function startTable() {
    document.querySelector("#rows thead").addEventListener("click", (event) => {
      const name = event.target.dataset.sort;
      if (!name) return;
      const numeric = columns.get(name).kind !== "text" && name !== "layer";
      state.down = state.sort === name ? !state.down : numeric;
      state.sort = name;
      drawHeadings();
      drawRows();
      document.querySelector(`[data-sort="${name}"]`).focus();
    });
    $("filter").addEventListener("input", () => {
      state.words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      drawRows();
    });
    $("every").addEventListener("change", () => { state.every = $("every").checked; drawHeadings(); drawRows(); });
    $("more").addEventListener("click", () => { state.shown = Infinity; drawRows(); });
    drawHeadings();
    drawRows();
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-row]");
    if (button) choose(Number(button.dataset.row), 1, true);
  });
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { setTheme(dark.matches ? "dark" : "light"); drawFigures(); });
  $("theme").addEventListener("click", () => { setTheme(isDark() ? "light" : "dark"); drawFigures(); });
  startTable();
  if ($("reading")) startFigures();
})();
