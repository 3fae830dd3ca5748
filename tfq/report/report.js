// Opens a folded section when a link leads to it, and makes tables sortable. The page is complete without this script:
// headings become buttons only here.
"use strict";
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  const section = target && target.closest("details");
  if (section) section.open = true;
};
addEventListener("hashchange", openTarget);
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => setTimeout(openTarget));
openTarget();
for (const table of document.querySelectorAll("table.sort")) {
  for (const heading of table.tHead.rows[0].querySelectorAll("th:not(.bars)")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    const numeric = heading.classList.contains("number");
    const key = (row) => {
      const text = row.cells[heading.cellIndex].textContent;
      const value = parseFloat(text.replaceAll(",", ""));
      return numeric ? (Number.isNaN(value) ? -Infinity : value) : text;
    };
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const order = before ? (before === "ascending" ? -1 : 1) : numeric ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
      const compare = numeric ? (a, b) => (a === b ? 0 : a - b) : (a, b) => a.localeCompare(b);
      const rows = [...table.tBodies[0].rows].sort((a, b) => order * compare(key(a), key(b)));
      table.tBodies[0].append(...rows);
    });
  }
}
