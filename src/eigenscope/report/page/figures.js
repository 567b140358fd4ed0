// The figures of a page that is read from top to bottom, in its colours.

(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  // A copy, with the colours of lines and marks as they are read on this ground; those on a contour plot stay.
  function copied(value, kept) {
    if (typeof value === "string") return (!kept && dark.matches && DATA.dark[value]) || value;
    if (Array.isArray(value)) return value.map((part) => copied(part, kept));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, copied(part, kept)]));
  }

  function draw() {
    const [ground, ink, muted, rule] = ["ground", "ink", "muted", "rule"].map(color);
    for (const [name, figure] of Object.entries(DATA.figures)) {
      const kept = figure.data.some((trace) => trace.type === "contour");
      const { data, layout } = copied(figure, kept);
      layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
      layout.font.color = ink;
      Object.assign(layout.hoverlabel, { bgcolor: ground, bordercolor: muted });
      layout.hoverlabel.font.color = ink;
      for (const [key, axis] of Object.entries(layout)) {
        if (!/^[xy]axis/.test(key)) continue;
        Object.assign(axis, { gridcolor: rule, linecolor: rule });
        axis.tickfont.color = muted;
        axis.title.font.color = muted;
      }
      for (const trace of data) if (trace.colorbar) trace.colorbar.tickfont.color = muted;
      Plotly.react(`figure-${name}`, data, layout, { displaylogo: false, responsive: true, displayModeBar: false });
    }
  }

  dark.addEventListener("change", draw);
  draw();
})();
