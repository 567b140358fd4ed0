// One matrix: its facts, its values, their histogram.

// Remarks that are no reason for doubt.
const isCalm = (text) => ["", "ok", "–"].includes(text) || DATA.layout.calm.some((calm) => text.startsWith(calm));

function fact(label, text, doubtful = false) {
  return element("div", { class: doubtful ? "doubt" : null }, element("dt", {}, label), element("dd", {}, text));
}

function choose(row, { among = 1, scroll = false, reading = "" } = {}) {
  state.row = row;
  $("name").value = String(row);
  $("matrix-note").textContent = among > 1 ? `One of ${among} matrices in this cell; the others are in the list.` : "";
  const known = DATA.layout.facts.filter((name) => columns.has(name) && textOf(name, row) !== "–");
  const nodes = known.map((name) => fact(columns.get(name).label, textOf(name, row)));
  for (const name of DATA.layout.remarks) {
    const text = textOf(name, row);
    if (text === "ok" || text === "–" || text === "") continue;
    nodes.push(fact(columns.get(name).label, text, !isCalm(text)));
    nodes[nodes.length - 1].classList.add("wide");
  }
  $("facts").replaceChildren(...nodes);
  showValues();
  if (reading && reading !== state.reading) setReading(reading);
  else {
    drawMap();
    drawComparison();
  }
  for (const line of document.querySelectorAll("#rows tbody tr")) {
    const here = Number(line.dataset.row) === row;
    if (here) line.setAttribute("aria-current", "true");
    else line.removeAttribute("aria-current");
  }
  if (!scroll) return;
  $("matrix").scrollIntoView();
  $("matrix-title").focus({ preventScroll: true });
}

function showValues() {
  const curve = curveOf(state.row);
  for (const id of ["matrix-figure", "cut"]) $(id).hidden = !curve;
  $("matrix-laws").replaceChildren();
  if (!curve) {
    $("matrix-note").textContent = "No singular values to draw.";
    return;
  }
  $("matrix-laws").replaceChildren(...curve.notes.map((note) => element("p", {}, note)));
  startRank();
  redraw("matrix-figure", drawSpectrum);
  redraw("cut-figure", drawEnergy);
}

function drawSpectrum() {
  const curve = curveOf(state.row);
  if (!curve) return;
  const figure = structuredClone(DATA.spectrum);
  fillValues(figure, curve);
  fillBars(figure, curve);
  addOtherRuns(figure);
  const { layout } = figure;
  [layout.xaxis.type, layout.yaxis.type] = document.querySelector("#axes input:checked").value.split(",");
  layout.shapes = [rankMark(curve)];
  if (narrow("matrix-figure")) {
    layout.height = 640;
    layout.xaxis.domain = layout.xaxis2.domain = [0, 1];
    layout.yaxis.domain = [0.58, 1];
    layout.yaxis2.domain = [0, 0.4];
  }
  draw("matrix-figure", figure);
}

function fillValues(figure, curve) {
  const [values, floor, edge, tail] = figure.data;
  Object.assign(values, { x: curve.index, y: curve.sigma });
  if (curve.floor !== null && curve.sigma[curve.sigma.length - 1] < 100 * curve.floor) {
    Object.assign(floor, { x: [1, curve.count], y: [curve.floor, curve.floor] });
  }
  if (curve.edge !== null) Object.assign(edge, { x: [1, curve.count], y: [curve.edge, curve.edge], text: ["", "noise edge"] });
  if (curve.tail) {
    const [x, y, holds] = curve.tail;
    Object.assign(tail, { x, y, text: [...x.slice(1).map(() => ""), `α ${curve.alpha}`], opacity: holds ? 1 : 0.45 });
    tail.line.dash = holds ? "solid" : "dash";
  }
  values.line.color = color("accent");
  floor.line.color = edge.line.color = edge.textfont.color = color("muted");
  tail.line.color = tail.textfont.color = color("law");
}

function fillBars(figure, curve) {
  const [bars, density, mark] = figure.data.slice(4);
  const [low, width, counts, beyond] = curve.bars;
  const middles = counts.map((_, i) => low + (i + 0.5) * width);
  Object.assign(bars, { x: middles, y: counts, width });
  const [above, below] = [color("accent"), color("bar")];
  bars.marker.color = middles.map((x) => (curve.edge !== null && x > curve.edge ? above : below));
  if (curve.bulk) Object.assign(density, { x: curve.bulk[0], y: curve.bulk[1] });
  density.line.color = color("law");
  const top = Math.max(...counts, ...(curve.bulk ? curve.bulk[1] : []));
  if (curve.edge !== null) {
    Object.assign(mark, { x: [curve.edge, curve.edge], y: [0, top], text: ["", `${counted(curve.above)} above`] });
    mark.textposition = 2 * curve.edge > low + middles[middles.length - 1] ? "top left" : "top right";
  }
  mark.line.color = mark.textfont.color = color("muted");
  const axis = figure.layout.xaxis2;
  axis.range = [low, low + counts.length * width];
  if (beyond) axis.title.text = `singular value σ (${counted(beyond)} further right, up to ${four(curve.sigma[0])})`;
  Object.assign(figure.layout.yaxis2, { range: [0, 1.12 * top], dtick: top <= 5 ? 1 : undefined });
}

function startMatrix() {
  $("name").replaceChildren(...DATA.names.map((name, row) => option(row, name)));
  $("name").addEventListener("change", () => choose(Number($("name").value)));
  $("axes").addEventListener("change", drawSpectrum);
  whenNear("matrix-figure", drawSpectrum);
  whenNear("cut-figure", drawEnergy);
}
