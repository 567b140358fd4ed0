// Runs beside each other: the change of a reading, both spectra, a reading over all runs.

const CHANGES_AT_FIRST = 12;
const comparison = { run: 0, all: false, role: "" };
const runColor = (i) => color(`run-${1 + (i % 4)}`);

// The spectra of the chosen matrix in the other runs, and a legend where there are any.
function addOtherRuns(figure) {
  const found = DATA.others.map((other, i) => [curveOf(state.row, other.curves), i]).filter(([curve]) => curve);
  if (!found.length) return;
  figure.layout.showlegend = true;
  figure.layout.legend = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" };
  figure.data.forEach((trace) => { trace.showlegend = false; });
  Object.assign(figure.data[0], { showlegend: true, name: DATA.letters[0] });
  for (const [curve, i] of found) {
    figure.data.push({
      type: "scatter", mode: "lines", x: curve.index, y: curve.sigma, name: DATA.letters[i + 1], showlegend: true,
      line: { color: runColor(i), width: 2, dash: "dashdot" },
      hovertemplate: `${DATA.letters[i + 1]}: σ<sub>%{x:,d}</sub> = %{y:.4g}<extra></extra>`,
    });
  }
}

function drawComparison() {
  if (!DATA.others.length || !$("compare-reading")) return;
  redraw("compare-figure", drawChange);
  redraw("over-figure", drawOver);
}

function drawChange() {
  const { readings } = DATA.others[comparison.run];
  const reading = readings[state.reading];
  $("compare-figure").hidden = $("changes-box").hidden = !reading;
  const [label, letter] = [columns.get(state.reading).label, DATA.letters[comparison.run + 1]];
  $("compare-note").textContent = reading
    ? `${label} in ${letter} against ${DATA.letters[0]}: blue is less, red is more; what is grey is not in both.`
    : `No matrix has ${label} in both runs.`;
  if (reading) {
    const stops = isDark() ? DATA.diverging.dark : DATA.diverging.light;
    draw("compare-figure", heatOf("compare-figure", DATA.diverging.figure, reading, stops, state.row));
    $("compare-figure").removeAllListeners("plotly_click");
    $("compare-figure").on("plotly_click", (event) => chooseCell(event.points[0].pointIndex, true));
    drawChanges(reading, letter);
  }
}

function drawChanges(reading, letter) {
  const size = (row) => Math.abs(Number(reading.changes[row]));
  const rows = DATA.names.map((_, row) => row).filter((row) => reading.changes[row] !== null);
  rows.sort((a, b) => (size(a) === size(b) ? a - b : size(b) - size(a)));
  const shown = comparison.all ? rows : rows.slice(0, CHANGES_AT_FIRST);
  const cells = (row) => [reading.said[row], columns.get(state.reading).texts[row], reading.texts[row]];
  document.querySelector("#changes tbody").replaceChildren(...shown.map((row) => element("tr", {},
    element("th", { scope: "row" }, matrixButton(row)), ...cells(row).map((text) => element("td", { class: "num" }, text)))));
  $("changes-second").textContent = letter;
  $("changes-more").hidden = shown.length === rows.length;
  $("changes-more").textContent = `Show all ${counted(rows.length)}`;
}

// One line for each matrix of a role.
function drawOver() {
  const figure = structuredClone(DATA.over);
  const column = columns.get(state.reading);
  figure.layout.yaxis.title.text = column.label;
  figure.layout.yaxis.type = column.log ? "log" : "linear";
  const labels = DATA.runs.length * 150 < $("over-figure").clientWidth ? DATA.runs : DATA.letters;
  const number = (value) => (value === null || !Number.isFinite(Number(value)) ? null : value);
  const roles = columns.get("role").texts;
  for (const row of DATA.names.map((_, i) => i).filter((i) => roles[i] === comparison.role)) {
    const values = [column, ...DATA.others.map((other) => other.readings[state.reading])].map((each) => number(each ? each.values[row] : null));
    const layer = columns.has("layer") ? columns.get("layer").values[row] : null;
    figure.data.push({
      type: "scatter", mode: "lines+markers", showlegend: false, x: labels, y: values,
      line: { color: depthColor(layer), width: 1.5 }, marker: { size: 6 },
      hovertemplate: `layer ${layer === null ? "–" : layer}, %{x}: %{y:.4g}<extra></extra>`,
    });
  }
  if (DATA.spectra.depth) {
    const scale = structuredClone(DATA.spectra.figure.data[0]);
    scale.marker.colorscale = scaleOf(isDark() ? DATA.spectra.dark : DATA.spectra.light);
    figure.data.push({ ...scale, x: [labels[0]], y: [null] });
  }
  draw("over-figure", figure);
}

function startComparison() {
  if (!DATA.others.length || !$("compare-reading")) return;
  $("compare-reading").replaceChildren(...$("reading").cloneNode(true).children);
  $("compare-reading").value = state.reading;
  $("compare-reading").addEventListener("change", () => setReading($("compare-reading").value));
  if ($("compare-run")) {
    $("compare-run").addEventListener("change", () => { comparison.run = Number($("compare-run").value); drawChange(); });
  }
  $("changes-more").addEventListener("click", () => { comparison.all = true; drawChange(); });
  whenNear("compare-figure", drawChange);
  if (DATA.others.length > 1) {
    const roles = [...new Set(columns.get("role").texts)];
    $("over-role").replaceChildren(...roles.map((role) => option(role, role)));
    comparison.role = textOf("role", state.row);
    $("over-role").value = comparison.role;
    $("over-role").addEventListener("change", () => { comparison.role = $("over-role").value; drawOver(); });
    whenNear("over-figure", drawOver);
  }
}
