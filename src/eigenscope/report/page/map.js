// Map: one reading, or its change, over layer × role.

function heatOf(id, template, reading, stops, row) {
  const figure = structuredClone(template);
  const [blank, colored, texts] = figure.data;
  const { label, texts: known } = columns.get(state.reading);
  const hovers = reading.hover.map((line, r) => line.map((hover, l) => (
    hover === null ? `${label}: ${known[DATA.heat.cells[r][l][0]]}` : hover)));
  blank.colorscale = [[0, color("blank")], [1, color("blank")]];
  blank.z = reading.z.map((line, r) => line.map((z, l) => (z === null && hovers[r][l] ? 0 : null)));
  blank.hovertext = hovers;
  Object.assign(colored, { z: reading.z, hovertext: hovers, zmin: reading.zmin, zmax: reading.zmax });
  if (stops) colored.colorscale = scaleOf(stops);
  Object.assign(colored.colorbar, { tickvals: reading.tickvals, ticktext: reading.ticktext });
  // About what Plotly leaves for the cells beside the names of the roles and the scale of colours.
  const room = $(id).clientWidth - 7.5 * Math.max(...colored.y.map((role) => role.length)) - 110;
  if (room / colored.x.length >= 42) writeValues(texts, colored, reading, stops);
  figure.layout.shapes = frames(row);
  return figure;
}

function writeValues(texts, colored, reading, stops) {
  Object.assign(texts, { x: [], y: [], text: [], textfont: { size: 11, color: [] } });
  for (const [r, line] of reading.z.entries()) {
    for (const [l, z] of line.entries()) {
      if (z === null) continue;
      texts.x.push(colored.x[l]);
      texts.y.push(colored.y[r]);
      texts.text.push(reading.text[r][l]);
      const t = (z - reading.zmin) / (reading.zmax - reading.zmin);
      texts.textfont.color.push(stops ? inkOn(mixed(stops, t)) : t < DATA.heat.white ? "#ffffff" : "#000000");
    }
  }
}

function frame([r, l], line) {
  return { type: "rect", x0: l - 0.5, x1: l + 0.5, y0: r - 0.5, y1: r + 0.5, line };
}

// The chosen cell, and where the keyboard is.
function frames(row) {
  const place = placeOf(row);
  const shapes = place ? [frame(place, { color: color("ink"), width: 2 })] : [];
  if (state.cursor) shapes.push(frame(state.cursor, { color: color("law"), width: 3, dash: "dot" }));
  return shapes;
}

function drawMap() {
  draw("map-figure", heatOf("map-figure", DATA.heat.figure, DATA.heat.readings[state.reading], null, state.row));
  for (const note of document.querySelectorAll("[data-meaning]")) note.hidden = note.dataset.meaning !== state.reading;
}

function placeOf(row) {
  for (const [r, cells] of DATA.heat.cells.entries()) {
    const l = cells.findIndex((cell) => cell.includes(row));
    if (l >= 0) return [r, l];
  }
  return null;
}

function chooseCell([r, l], scroll = false) {
  const rows = DATA.heat.cells[r][l];
  if (!rows.length) return;
  // Of several, the one in the middle: the cell shows their median.
  const values = columns.get(state.reading).values;
  const known = rows.filter((row) => values[row] !== null).sort((a, b) => values[a] - values[b]);
  choose(known.length ? known[(known.length - 1) >> 1] : rows[0], { among: rows.length, scroll });
}

// The next cell in that direction that holds a matrix: in the same row or column, else the nearest one; at the border none.
function neighbour([r, l], [down, right]) {
  let [best, least] = [[r, l], Infinity];
  for (const [y, line] of DATA.heat.cells.entries()) {
    for (const [x, cell] of line.entries()) {
      const along = (y - r) * down + (x - l) * right;
      const across = Math.abs((y - r) * right) + Math.abs((x - l) * down);
      const distance = along + (across ? 1e4 * across + 1e8 : 0);
      if (cell.length && along > 0 && distance < least) [best, least] = [[y, x], distance];
    }
  }
  return best;
}

const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

function moveOverMap(event) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if ((event.key === "Enter" || event.key === " ") && state.cursor) chooseCell(state.cursor);
  else if (ARROWS[event.key]) setCursor(neighbour(state.cursor || placeOf(state.row) || [0, 0], ARROWS[event.key]));
  else return;
  event.preventDefault();
}

function setCursor(place) {
  state.cursor = place;
  Plotly.relayout($("map-figure"), { shapes: frames(state.row) });
  if (!place) return;
  const [r, l] = place;
  const [role, layer] = [DATA.heat.roles[r], DATA.heat.layers[l]];
  const cell = DATA.heat.cells[r][l];
  const value = DATA.heat.readings[state.reading].text[r][l] || "not defined";
  const name = cell.length > 1 ? `${cell.length} matrices` : DATA.names[cell[0]];
  $("map-note").textContent = `${role}, layer ${layer}: ${columns.get(state.reading).label} ${value} · ${name}`;
}

function setReading(name) {
  if (!DATA.heat.readings[name]) return;
  state.reading = name;
  for (const id of ["reading", "compare-reading"]) if ($(id)) $(id).value = name;
  drawMap();
  drawComparison();
}

function startMap() {
  state.reading = $("reading").value;
  $("reading").addEventListener("change", () => setReading($("reading").value));
  const map = $("map-figure");
  map.addEventListener("keydown", moveOverMap);
  map.addEventListener("focus", () => { if (map.matches(":focus-visible")) setCursor(placeOf(state.row)); });
  map.addEventListener("blur", () => setCursor(null));
}
