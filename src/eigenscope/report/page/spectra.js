// Spectra of a role by layer.

function drawSpectra() {
  const figure = structuredClone(DATA.spectra.figure);
  const chosen = DATA.spectra.roles.find((each) => each.role === state.role);
  if (DATA.spectra.depth) figure.data[0].marker.colorscale = scaleOf(isDark() ? DATA.spectra.dark : DATA.spectra.light);
  for (const row of chosen.rows) {
    const curve = curveOf(row);
    figure.data.push({
      type: "scatter", mode: "lines", showlegend: false, line: { color: depthColor(curve.layer), width: 1.5 },
      x: curve.index.map((i) => i / curve.size), y: curve.sigma.map((s) => s / curve.sigma[0]),
      hovertemplate: `${curve.head}<br>%{x:.3f}: %{y:.4g}<extra></extra>`,
    });
  }
  const some = chosen.of > chosen.rows.length ? ` ${chosen.rows.length} of ${chosen.of} are drawn.` : "";
  $("spectra-note").textContent = `Each line is one matrix, its singular values relative to the largest.${some}`;
  draw("spectra-figure", figure);
}

function startSpectra() {
  const roles = [...DATA.spectra.roles].sort((a, b) => b.of - a.of);
  $("spectra").hidden = !roles.length;
  $("role").replaceChildren(...roles.map(({ role, of }) => option(role, `${role} (${of})`)));
  state.role = roles.length ? roles[0].role : "";
  $("role").addEventListener("change", () => { state.role = $("role").value; drawSpectra(); });
  if (state.role) whenNear("spectra-figure", drawSpectra);
}
