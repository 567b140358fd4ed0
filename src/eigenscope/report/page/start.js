// The theme, and what listens to what.

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  $("theme").setAttribute("aria-label", `Use ${name === "dark" ? "light" : "dark"} colours`);
}

function changeTheme(name) {
  setTheme(name);
  if (!$("reading")) return;
  drawMap();
  redraw("matrix-figure", drawSpectrum);
  redraw("cut-figure", drawEnergy);
  if (state.role) redraw("spectra-figure", drawSpectra);
  drawComparison();
}

// What the page opens with: the matrix of the first finding that has values to draw, else the one at the top of the first reading.
function mostExtreme() {
  const found = [...document.querySelectorAll("#findings button[data-row]")].map((button) => Number(button.dataset.row));
  const drawn = found.find((row) => DATA.curves.rows[row]);
  if (drawn !== undefined) return drawn;
  const values = columns.get(state.reading).values.map((value) => (value === null ? -Infinity : Number(value)));
  return values.reduce((best, value, row) => (value > values[best] ? row : best), 0);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-row], a[data-row]");
  if (!button || !$("reading")) return;
  choose(Number(button.dataset.row), { scroll: true, reading: button.dataset.reading || "" });
});
if ($("findings-more")) {
  $("findings-more").addEventListener("click", () => {
    for (const line of document.querySelectorAll("#findings li[hidden]")) line.hidden = false;
    $("findings-more").hidden = true;
  });
}
setTheme(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => changeTheme(dark.matches ? "dark" : "light"));
$("theme").addEventListener("click", () => changeTheme(isDark() ? "light" : "dark"));
startTable();
if ($("reading")) {
  startMap();
  startMatrix();
  listenToRank();
  state.row = mostExtreme();
  startSpectra();
  startComparison();
  choose(state.row);
  $("map-figure").on("plotly_click", (event) => chooseCell(event.points[0].pointIndex));
}
