// What all parts share: the data, the state, elements, colours, drawing.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const CONFIG = {
  displaylogo: false, responsive: true, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtons: [["resetScale2d", "toImage"]],
};
const columns = new Map(DATA.columns.map((column) => [column.name, column]));
// row: the chosen matrix. cursor: [role, layer] of the map's keyboard. place: of the rank in the kept ones.
const state = { reading: "", row: -1, cursor: null, place: 0, role: "" };

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// A spectrum: which values, the values, the energy that the leading ones hold, and the two errors of cutting there.
function curveOf(row, curves = DATA.curves) {
  const curve = curves.rows[row];
  if (curve && !curve.sigma) {
    curve.index = curves.index[curve.count];
    const bytes = Uint8Array.from(atob(curve.packed), (character) => character.charCodeAt(0));
    const numbers = Array.from(new Float32Array(bytes.buffer));
    const part = (i) => numbers.slice(i * curve.index.length, (i + 1) * curve.index.length);
    curve.sigma = part(0).map((share) => share * curve.largest);
    [curve.energy, curve.error, curve.spectral] = [1, 2, 3].map(part);
  }
  return curve;
}

const option = (value, text) => element("option", { value }, text);
const counted = (count) => count.toLocaleString("en");
const textOf = (name, row) => (columns.has(name) ? columns.get(name).texts[row] : "");
const matrixButton = (row) => element("button", { type: "button", class: "link", "data-row": row }, DATA.names[row]);
const narrow = (id) => $(id).clientWidth < 640;
const isDark = () => document.documentElement.dataset.theme === "dark";

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
    if (!bar) continue;
    bar.tickfont.color = muted;
    if (bar.title) bar.title.font.color = muted;
  }
  return figure;
}

function draw(id, figure) {
  themed(figure);
  figure.layout.width = undefined;
  return Plotly.react($(id), figure.data, figure.layout, CONFIG);
}

function mixed(stops, t) {
  const place = Math.min(Math.max(t, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  return [0, 1, 2].map((i) => {
    const [a, b] = [part(stops[low], i), part(stops[low + 1], i)];
    return Math.round(a + (b - a) * (place - low));
  });
}

const css = (channels) => `rgb(${channels.join(",")})`;
const scaleOf = (stops) => stops.map((stop, i) => [i / (stops.length - 1), stop]);

// Black or white, whichever stands out more (relative luminance of WCAG 2.2).
function inkOn(channels) {
  const [r, g, b] = channels.map((c) => ((c / 255) <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b < 0.179 ? "#ffffff" : "#000000";
}

function depthColor(layer) {
  const { depth } = DATA.spectra;
  if (!depth || layer === null || layer === undefined) return color("accent");
  return css(mixed(isDark() ? DATA.spectra.dark : DATA.spectra.light, (layer - depth[0]) / (depth[1] - depth[0])));
}

// Figures below the fold are drawn when they come near: the page answers at once, however many there are.
const waiting = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting || !waiting.has(entry.target)) continue;
    const late = waiting.get(entry.target);
    waiting.delete(entry.target);
    watcher.unobserve(entry.target);
    late();
  }
}, { rootMargin: "200px" });

function whenNear(id, late) {
  waiting.set($(id), late);
  watcher.observe($(id));
}

// Again, where it has been drawn; what has not been is drawn as things then stand.
function redraw(id, drawing) {
  if ($(id) && !waiting.has($(id))) drawing();
}
