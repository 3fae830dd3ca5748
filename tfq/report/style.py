# SPDX-License-Identifier: Apache-2.0
"""The style sheet of the HTML report."""

# Text has a contrast of 4.5 and more on each of its backgrounds, bars and dots of 3; a test computes both.
LIGHT = {
    "ink": "#1b2027",
    "soft": "#57616d",
    "paper": "#ffffff",
    "card": "#f5f6f8",
    "line": "#dde1e6",
    "good": "#1a6e3c",
    "open": "#7a5200",
    "bad": "#b3261e",
    "good-paper": "#eef8f1",
    "open-paper": "#fff8e8",
    "bad-paper": "#fdf0ef",
    "c0": "#2f74bd",
    "c1": "#c2610f",
    "c2": "#23805a",
    "c3": "#8553b8",
    "c4": "#bb4260",
    "c5": "#66727f",
}
DARK = {
    "ink": "#e4e8ed",
    "soft": "#a0abb7",
    "paper": "#14171b",
    "card": "#1b1f25",
    "line": "#333a44",
    "good": "#7bd69d",
    "open": "#f0c465",
    "bad": "#ff9c94",
    "good-paper": "#15241b",
    "open-paper": "#282112",
    "bad-paper": "#2c1918",
    "c0": "#62a6ea",
    "c1": "#eb9449",
    "c2": "#4cbd8c",
    "c3": "#bd92e6",
    "c4": "#ea7f98",
    "c5": "#9aa6b3",
}


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


_RULES = """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 2.2rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.6rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3.2rem 0 0.5rem; padding-top: 0.9rem; letter-spacing: -0.008em;
  border-top: 1px solid var(--line); scroll-margin-top: 0.5rem; }
h3 { font-size: 0.9rem; font-weight: 600; margin: 0 0 0.5rem; }
p { margin: 0.3rem 0 0.7rem; max-width: 48rem; overflow-wrap: anywhere; }
.subtitle, .about, figcaption, .notes, .detail { color: var(--soft); }
.subtitle { margin: 0.3rem 0 0; max-width: none; font-size: 0.92rem; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }

.verdict { margin: 1.3rem 0 0; padding: 1.1rem 1.3rem 1.2rem; border: 1px solid var(--line); border-radius: 10px;
  border-top: 4px solid var(--state); background: var(--card); }
.good { --state: var(--good); } .open { --state: var(--open); } .bad { --state: var(--bad); }
.mark { display: inline-grid; place-items: center; flex: none; width: 1.35em; height: 1.35em; border-radius: 50%;
  font: 700 0.8em/1 system-ui, sans-serif; color: var(--card); background: var(--state); }
.headline { display: flex; align-items: center; gap: 0.6rem; margin: 0; max-width: none; font-size: 1.45rem;
  font-weight: 650; line-height: 1.25; letter-spacing: -0.012em; color: var(--state); }
.verdict .about { margin: 0.9rem 0 0; font-size: 0.88rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: 0.9rem 1.6rem;
  margin: 0.5rem 0 0; }
.tiles div { border-left: 2px solid var(--line); padding-left: 0.8rem; }
.tiles dt { font-size: 0.82rem; color: var(--soft); overflow-wrap: anywhere; }
.tiles dd { margin: 0; font-size: 1.7rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tiles dd.detail { font-size: 0.82rem; line-height: 1.4; font-weight: 400; letter-spacing: 0; }
.checks { list-style: none; margin: 1.2rem 0 0; padding: 0.9rem 0 0; border-top: 1px solid var(--line);
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0.45rem 2rem;
  font-size: 0.9rem; }
.checks li { display: grid; grid-template-columns: 1.3rem 5.6rem minmax(0, 1fr); gap: 0 0.4rem; align-items: baseline;
  overflow-wrap: anywhere; }
.checks b { font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin: 1rem 0 0; font-size: 0.86rem; }
nav a { color: var(--soft); text-decoration: none; padding: 0.15rem 0; border-bottom: 1px solid var(--line); }
nav a:hover { color: var(--ink); border-color: currentColor; }
a:focus-visible, button:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--c0);
  outline-offset: 2px; border-radius: 2px; }

.warnings { margin: 1.5rem 0 0; padding: 0.8rem 1.2rem; color: var(--open); background: var(--open-paper);
  border: 1px solid var(--line); border-left: 4px solid var(--open); border-radius: 6px; font-size: 0.92rem; }
.warnings h2 { margin: 0; padding: 0; border: 0; font-size: 1rem; }
.warnings ul { margin: 0.3rem 0 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.warnings summary { color: inherit; }

.split { display: grid; gap: 1.2rem 2.5rem; }
.split > * { min-width: 0; }
.figures { display: grid; gap: 1rem; align-content: start;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
@media (min-width: 64rem) {
  .split { grid-template-columns: minmax(0, 1fr) 23rem; }
  .split .figures { grid-column: 2; grid-row: 1; grid-template-columns: 1fr; }
}
figure { margin: 0.8rem 0 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 0.9rem 1rem; break-inside: avoid; }
figure svg { display: block; width: 100%; max-width: 30rem; height: auto; color: var(--ink); }
figure svg * { stroke-linejoin: round; }
figure svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
figcaption { font-size: 0.82rem; line-height: 1.45; margin-top: 0.4rem; overflow-wrap: anywhere; }
.missing { color: var(--soft); font-style: italic; }

.scroll { overflow-x: auto; margin: 0.8rem 0 0; }
.scroll.tall { max-height: 40rem; overflow-y: auto; border-bottom: 1px solid var(--line); }
.tall thead th { position: sticky; top: 0; background: var(--paper); z-index: 1;
  box-shadow: inset 0 -1px var(--soft); }
.tall tfoot { position: sticky; bottom: 0; background: var(--paper); box-shadow: 0 -1px var(--soft); }
table { border-collapse: separate; border-spacing: 0; min-width: min(100%, 40rem); font-size: 0.875rem;
  line-height: 1.4; font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
caption { text-align: left; padding: 1rem 0 0.2rem; font-size: 0.9rem; font-weight: 600; }
th, td { padding: 0.34rem 0 0.34rem 1.2rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
td, tbody th { max-width: 36rem; }
.long { overflow-wrap: anywhere; min-width: 8rem; }
thead th, thead td { color: var(--soft); font-weight: 500; vertical-align: bottom; border-bottom-color: var(--soft); }
tbody th, tfoot th { font-weight: 500; min-width: 7rem; }
tfoot td, tfoot th { color: var(--soft); }
tfoot tr:first-child > * { border-top: 1px solid var(--soft); }
tfoot tr:last-child > * { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; min-width: 3.2rem; }
td.bad { color: var(--bad); font-weight: 600; }
.bars { width: 10rem; min-width: 5.5rem; vertical-align: middle; }
thead .bars { vertical-align: bottom; }
.bars i { display: block; height: 5px; margin: 1px 0; border-radius: 1px; width: calc(var(--f, 0) * 100%);
  background: var(--s); }
.bars i[style] { min-width: 1px; }
.dot { display: inline-block; width: 0.6em; height: 0.6em; border-radius: 2px; margin-right: 0.5em;
  background: var(--s); }
.s0 { --s: var(--c0); } .s1 { --s: var(--c1); } .s2 { --s: var(--c2); }
.s3 { --s: var(--c3); } .s4 { --s: var(--c4); } .s5 { --s: var(--c5); }
th button { font: inherit; color: inherit; text-align: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
th button::after { content: "↕"; opacity: 0.45; margin-left: 0.25em; }
th[aria-sort="ascending"] button::after { content: "↑"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "↓"; opacity: 1; }
.notes { font-size: 0.82rem; margin: 0.5rem 0 0; padding-left: 1.1rem; max-width: 60rem; overflow-wrap: anywhere; }
details { margin: 0.5rem 0 0; }
details summary { cursor: pointer; color: var(--soft); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 0.9rem 1.1rem;
  overflow-x: auto; font: 0.8rem/1.5 ui-monospace, "Cascadia Mono", Menlo, "DejaVu Sans Mono", monospace; }

@media (max-width: 40rem) {
  body { padding: 1.3rem 1rem 3rem; }
  h1 { font-size: 1.35rem; }
  h2 { margin-top: 2.4rem; }
  .headline { font-size: 1.2rem; }
  .verdict { padding: 0.9rem 1rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 0.8rem; }
  .tiles dd { font-size: 1.3rem; }
  .checks li { grid-template-columns: 1.3rem minmax(0, 1fr); }
  .checks li > span:last-child { grid-column: 2; }
  nav { flex-wrap: nowrap; overflow-x: auto; white-space: nowrap; }
  th, td { padding-left: 1rem; }
  /* The name of a row stays in sight while its numbers scroll by. */
  .scroll th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; max-width: 9.5rem;
    min-width: 6rem; padding-right: 0.4rem; }
  .tall thead th:first-child { z-index: 2; }
}
@media print {
  @page { margin: 14mm; }
  html { font-size: 68%; }
  body { max-width: none; padding: 0; font-size: 1rem; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  figure svg { max-width: 24rem; }
  .number { white-space: normal; }
  nav, details:not([open]) { display: none; }
  h2 { margin-top: 1.4rem; break-after: avoid; }
  .scroll, .scroll.tall { overflow: visible; max-height: none; }
  .tall thead th, .tall tfoot { position: static; }
  th, td { padding-left: 0.8rem; }
  th button::after { content: none; }
  tr, figure, .verdict { break-inside: avoid; }
}
"""

STYLE = f"""\
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
{_RULES}"""
