// Cut to rank k: what the best approximation of that rank keeps, loses and costs.

const four = (value) => (value === 0 ? "0" : Number(value.toPrecision(4)).toString().replace("-", "−"));
const percent = (value) => `${four(100 * value)} %`;

// Place of the largest kept rank that is not above k; the first one where all are.
function placeBelow(ranks, k) {
  let [low, high] = [0, ranks.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (ranks[middle] <= k) low = middle;
    else high = middle - 1;
  }
  return low;
}

function nearestPlace(ranks, k) {
  const below = placeBelow(ranks, k);
  return below + 1 < ranks.length && ranks[below + 1] - k < k - ranks[below] ? below + 1 : below;
}

function ofMatrix(curve, place) {
  const k = curve.index[place];
  const [m, n] = curve.shape;
  return {
    frobenius: curve.error[place], spectral: curve.spectral[place], energy: curve.energy[place],
    parameters: k * (m + n + DATA.layout.perRank), dense: m * n,
    bytes: curve.bytes === null ? null : k * (m + n + DATA.layout.perRank) * curve.bytes, held: curve.bytes === null ? null : m * n * curve.bytes,
  };
}

function sameRole(row) {
  const roles = columns.get("role").texts;
  return DATA.names.map((_, other) => other).filter((other) => roles[other] === roles[row] && DATA.curves.rows[other]);
}

// All matrices of a role at one rank. Where a spectrum was thinned, the next lower kept rank bounds its errors from above.
function ofRole(rows, k) {
  const curves = rows.map((row) => curveOf(row));
  const largest = Math.max(...curves.map((curve) => curve.norm));
  const sum = { lost: 0, all: 0, worst: 0, spectral: 0, parameters: 0, dense: 0, bytes: 0, held: 0, bounded: false };
  for (const curve of curves) {
    const ranks = curve.index;
    const own = Math.min(k, curve.count);
    const place = placeBelow(ranks, own);
    if (ranks[place] !== own) sum.bounded = true;
    const [m, n] = curve.shape;
    const weight = (curve.norm / largest) ** 2;
    sum.lost += curve.error[place] ** 2 * weight;
    sum.all += weight;
    sum.worst = Math.max(sum.worst, curve.error[place]);
    sum.spectral = Math.max(sum.spectral, curve.spectral[place]);
    sum.parameters += own * (m + n + DATA.layout.perRank);
    sum.dense += m * n;
    sum.bytes = curve.bytes === null ? NaN : sum.bytes + own * (m + n + DATA.layout.perRank) * curve.bytes;
    sum.held = curve.bytes === null ? NaN : sum.held + m * n * curve.bytes;
  }
  return { ...sum, total: Math.sqrt(sum.lost / sum.all) };
}

const sizeOf = (bytes) => {
  if (bytes === null || Number.isNaN(bytes)) return "–";
  const unit = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => bytes >= size);
  return unit ? `${four(bytes / unit[0])} ${unit[1]}` : `${counted(Math.round(bytes))} B`;
};

function drawRank() {
  const curve = curveOf(state.row);
  const k = curve.index[state.place];
  const one = ofMatrix(curve, state.place);
  const rows = sameRole(state.row);
  const all = ofRole(rows, k);
  const bound = all.bounded ? "≤ " : "";
  const cost = (used, dense) => `${counted(used)}\n${percent(used / dense)} of ${counted(dense)}`;
  const bytes = (used, held) => (sizeOf(held) === "–" ? "–" : `${sizeOf(used)}\nof ${sizeOf(held)}`);
  const shown = {
    "one-frobenius": percent(one.frobenius), "one-spectral": Number.isNaN(one.spectral) ? "–" : percent(one.spectral),
    "one-energy": percent(one.energy), "one-parameters": cost(one.parameters, one.dense), "one-bytes": bytes(one.bytes, one.held),
    "all-frobenius": `${bound}${percent(all.total)} in all\n${bound}${percent(all.worst)} at worst`,
    "all-spectral": Number.isNaN(all.spectral) ? "–" : `${bound}${percent(all.spectral)} at worst`,
    "all-energy": `${all.bounded ? "≥ " : ""}${percent(1 - all.lost / all.all)}`,
    "all-parameters": cost(all.parameters, all.dense), "all-bytes": bytes(all.bytes, all.held),
  };
  for (const [id, text] of Object.entries(shown)) $(id).textContent = text;
  for (const [which, { parameters, dense }] of [["one", one], ["all", all]]) {
    $(`${which}-parameters`).classList.toggle("doubt", parameters >= dense);
  }
  $("all-title").textContent = rows.length === 1 ? "the only one of its role" : `all ${counted(rows.length)} of role ${textOf("role", state.row)}`;
  $("rank").value = String(k);
  $("rank-range").value = String(state.place);
  $("rank-range").setAttribute("aria-valuetext", `rank ${k}`);
  for (const id of ["matrix-figure", "cut-figure"]) {
    redraw(id, () => Plotly.relayout($(id), { shapes: [rankMark(curve)] }));
  }
}

// A line at the chosen rank.
function rankMark(curve) {
  const k = curve.index[state.place];
  return { type: "line", xref: "x", yref: "y domain", x0: k, x1: k, y0: 0, y1: 1, line: { color: color("ink"), width: 1 } };
}

function drawEnergy() {
  const curve = curveOf(state.row);
  if (!curve) return;
  const figure = structuredClone(DATA.energy);
  const [energy, error, marks] = figure.data;
  Object.assign(energy, { x: curve.index, y: curve.energy });
  Object.assign(error, { x: curve.index, y: curve.error });
  Object.assign(marks, {
    x: curve.ranks.map(([rank]) => rank), y: curve.ranks.map(([, share]) => share / 100),
    text: curve.ranks.map(([, share]) => `${share} %`),
  });
  energy.line.color = marks.marker.color = color("accent");
  error.line.color = color("law");
  figure.layout.showlegend = true;
  figure.layout.legend = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" };
  figure.layout.shapes = [rankMark(curve)];
  draw("cut-figure", figure);
}

function setPlace(place) {
  state.place = place;
  drawRank();
}

// For a newly chosen matrix: at the rank that keeps 90 %.
function startRank() {
  const curve = curveOf(state.row);
  const ranks = curve.index;
  state.place = nearestPlace(ranks, curve.ranks.length ? curve.ranks[0][0] : Math.ceil(curve.count / 2));
  Object.assign($("rank-range"), { min: 0, max: ranks.length - 1, step: 1 });
  Object.assign($("rank"), { min: 1, max: curve.count, step: 1 });
  $("rank-thinned").hidden = ranks.length === curve.count;
  drawRank();
}

function listenToRank() {
  $("rank-range").addEventListener("input", () => setPlace(Number($("rank-range").value)));
  $("rank").addEventListener("change", () => {
    const curve = curveOf(state.row);
    const wanted = Number($("rank").value);
    if (!(wanted >= 1)) return drawRank();
    const ranks = curve.index;
    const place = nearestPlace(ranks, wanted);
    // A step of the arrows that comes back to where it began goes on to the next kept rank.
    const step = Math.sign(wanted - ranks[state.place]);
    const stuck = place === state.place && step !== 0 && ranks[place + step] !== undefined;
    return setPlace(stuck ? place + step : place);
  });
}
