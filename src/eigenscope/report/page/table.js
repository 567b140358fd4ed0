// The table of all matrices: sorted, filtered, some of its columns or all.

const ROWS_AT_FIRST = 400;
const table = { sort: "", down: false, words: [], every: false, shown: ROWS_AT_FIRST };

const tableColumns = () => DATA.columns.filter((column) => table.every || column.key);

function sortedRows() {
  const searched = DATA.columns.filter((column) => column.kind === "text");
  const rows = DATA.names.map((_, row) => row).filter((row) => {
    const line = searched.map((column) => column.texts[row]).join(" ").toLowerCase();
    return table.words.every((word) => line.includes(word));
  });
  const column = columns.get(table.sort);
  if (!column) return rows;
  const sign = table.down ? -1 : 1;
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
    const sorted = column.name === table.sort ? (table.down ? "descending" : "ascending") : null;
    const button = element("button", { type: "button", "data-sort": column.name }, column.label);
    return element("th", { scope: "col", class: column.kind === "text" ? null : "num", "aria-sort": sorted }, button);
  });
  document.querySelector("#rows thead").replaceChildren(element("tr", {}, ...cells));
}

function drawRows() {
  const rows = sortedRows();
  const lines = rows.slice(0, table.shown).map((row) => {
    const cells = tableColumns().map((column) => {
      const text = column.texts[row];
      if (column.name === "name") return element("th", { scope: "row" }, matrixButton(row));
      const doubtful = column.name === "status" && text !== "ok" && text !== "–";
      return element("td", { class: column.kind === "text" ? (doubtful ? "doubt" : null) : "num" }, text);
    });
    return element("tr", { "data-row": row, "aria-current": row === state.row ? "true" : null }, ...cells);
  });
  document.querySelector("#rows tbody").replaceChildren(...lines);
  const all = DATA.names.length;
  $("count").textContent = `${rows.length === all ? "" : `${counted(rows.length)} of `}${counted(all)} matrices`;
  $("more").hidden = rows.length <= table.shown;
  $("more").textContent = `Show all ${counted(rows.length)}`;
}

function startTable() {
  document.querySelector("#rows thead").addEventListener("click", (event) => {
    const name = event.target.dataset.sort;
    if (!name) return;
    const numeric = columns.get(name).kind !== "text" && name !== "layer";
    table.down = table.sort === name ? !table.down : numeric;
    table.sort = name;
    drawHeadings();
    drawRows();
    document.querySelector(`[data-sort="${name}"]`).focus();
  });
  $("filter").addEventListener("input", () => {
    table.words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    drawRows();
  });
  $("every").addEventListener("change", () => { table.every = $("every").checked; drawHeadings(); drawRows(); });
  $("more").addEventListener("click", () => { table.shown = Infinity; drawRows(); });
  drawHeadings();
  drawRows();
}
