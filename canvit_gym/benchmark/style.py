"""The style sheet of a benchmark's report, light and dark. Figures have a white background in both."""

CSS = """
:root { color-scheme: light dark; --page: #f6f7f8; --card: #ffffff; --ink: #1b1f24; --faint: #69707a; --rule: #d5d9de;
  --warning: #fff4d6; --warning-rule: #d9a514; }
@media (prefers-color-scheme: dark) { :root { --page: #101316; --card: #181c21; --ink: #e6e9ec; --faint: #99a1ab;
  --rule: #353b43; --warning: #352c12; --warning-rule: #b98d18; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 80px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 48px 0 12px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 24px 0 8px; }
p { max-width: 75ch; }
.scope, .note, figcaption { color: var(--faint); }
.scope { margin: 0 0 20px; }
.note, figcaption { font-size: 0.875rem; max-width: 100ch; }
.summary { font-size: 1.05rem; padding-left: 1.2em; max-width: 80ch; }
.summary li { margin: 6px 0; }
.warning { background: var(--warning); border-left: 4px solid var(--warning-rule); padding: 4px 16px; margin: 16px 0; }
.warning p { margin: 8px 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; }
table { border-collapse: collapse; font-size: 0.82rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 8px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; color: var(--faint); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
.interval { color: var(--faint); font-size: 0.92em; }
.words td, .provenance td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.words td:nth-last-child(-n+2) { text-align: right; white-space: nowrap; }
.words td { min-width: 7em; }
.words td:nth-child(2) { min-width: 13em; }
.words thead th:nth-child(-n+4) { text-align: left; }
figure { margin: 20px 0; padding: 16px; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; }
figure > img { display: block; max-width: 100%; height: auto; margin: 0 auto; background: #ffffff; border-radius: 3px; }
figcaption { margin-top: 10px; max-width: 90ch; }
@media print { body { background: #ffffff; } figure, .scroll { break-inside: avoid; } }
"""
