// The one figure of a decomposition, in the colours of the page.

(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  // A copy, with the colours of the axes as they are read on this ground.
  function copied(value) {
    if (typeof value === "string") return (dark.matches && DATA.dark[value]) || value;
    if (Array.isArray(value)) return value.map(copied);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, copied(part)]));
  }

  function draw() {
    const figure = copied(DATA.figure);
    const { layout } = figure;
    const [ground, ink, muted, rule] = ["ground", "ink", "muted", "rule"].map(color);
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.font.color = ink;
    Object.assign(layout.hoverlabel, { bgcolor: ground, bordercolor: muted });
    layout.hoverlabel.font.color = ink;
    for (const note of layout.annotations || []) note.font.color = ink;
    for (const [key, part] of Object.entries(layout)) {
      const axes = /^scene/.test(key) ? [part.xaxis, part.yaxis, part.zaxis] : /^[xy]axis/.test(key) ? [part] : [];
      for (const axis of axes) {
        Object.assign(axis, { gridcolor: rule, linecolor: rule });
        if (axis.tickfont) axis.tickfont.color = muted;
        if (axis.title && axis.title.font) axis.title.font.color = muted;
      }
    }
    Plotly.react("figure", figure.data, layout, { displaylogo: false, responsive: true, displayModeBar: false });
  }

  dark.addEventListener("change", draw);
  draw();
})();
