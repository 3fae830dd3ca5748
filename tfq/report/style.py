# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the HTML report."""

STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #1c2128; --soft: #5b6572; --paper: #ffffff; --card: #f6f7f9; --line: #dfe3e8;
  --warn-ink: #6b4300; --warn-paper: #fff6e0; --warn-line: #e8b64c; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e7ec; --soft: #9aa5b1; --paper: #14171b; --card: #1c2026; --line: #323943;
    --warn-ink: #ffdf9e; --warn-paper: #2e2512; --warn-line: #8a6a1f; --bad: #ff9c94;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 3rem 0 0.6rem; letter-spacing: -0.005em; }
h3 { font-size: 0.95rem; margin: 0 0 0.5rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 46rem; }
.subtitle, .about, figcaption, .notes, .detail, caption { color: var(--soft); }
.subtitle { margin-top: 0.35rem; max-width: none; }
.about { margin: 2rem 0 0.6rem; }
.warnings { margin: 1.8rem 0 0; padding: 0.9rem 1.2rem; color: var(--warn-ink); background: var(--warn-paper);
  border: 1px solid var(--warn-line); border-left-width: 5px; border-radius: 6px; }
.warnings h2 { margin: 0; font-size: 1rem; }
.warnings ul { margin: 0.4rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: 0.8rem; margin: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.8rem 1rem 0.9rem; }
.tile dt { font-size: 0.85rem; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.6rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile dd.detail { font-size: 0.82rem; line-height: 1.4; font-weight: 400; overflow-wrap: anywhere; }
.tile.bad dd:not(.detail) { color: var(--bad); }
.scroll { overflow-x: auto; margin: 0.8rem 0 0; }
table { border-collapse: collapse; min-width: min(100%, 44rem); font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.6rem 0 0.3rem; font-size: 0.9rem; }
th, td { padding: 0.42rem 1.4rem 0.42rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; }
td, tbody th { max-width: 34rem; }
td:not(.number) { overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; border-bottom-color: var(--soft); }
tbody th { font-weight: 500; overflow-wrap: anywhere; min-width: 7rem; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
th:last-child, td:last-child { padding-right: 0; }
.notes { font-size: 0.85rem; margin: 0.6rem 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem;
  align-items: stretch; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem 1.1rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure svg text { font-family: inherit !important; }
figcaption { font-size: 0.85rem; margin-top: 0.5rem; }
.missing { color: var(--soft); font-style: italic; }
details summary { cursor: pointer; color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.9rem 1.1rem;
  overflow-x: auto; font: 0.82rem/1.5 ui-monospace, "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace; }
@media print { .scroll { overflow: visible; } .tile, figure { break-inside: avoid; } }
"""
