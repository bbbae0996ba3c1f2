"""The looks of the report page."""

STYLE = """
:root {
  --ink: #22272e; --soft: #5b6570; --ground: #f4f6f8; --card: #fff; --line: #e1e6eb;
  --accent: #1f6fc4; --track: #e8edf2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #d7dce2; --soft: #98a2ad; --ground: #0e1116; --card: #171b21; --line: #2a313a;
    --accent: #6cb0ff; --track: #262d36;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 12px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 0 0 16px; }
header p { max-width: 74ch; margin: 0 0 10px; color: var(--soft); }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin-top: 20px;
}
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  gap: 14px; margin: 26px 0 0; }
.figures div { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 16px 18px; }
.figures dd { margin: 0; font-size: 1.7rem; font-weight: 650; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.figures dt { color: var(--soft); font-size: 0.875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 10px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; }
thead th { color: var(--soft); font-size: 0.85rem; }
th:first-child { text-align: left; padding-left: 0; }
td:last-child, th:last-child { padding-right: 0; }
.bar { width: 45%; min-width: 90px; }
.bar i { display: block; height: 10px; border-radius: 5px; background: var(--accent); }
.bar { background: linear-gradient(var(--track), var(--track)) center / calc(100% - 20px) 10px
  no-repeat; }
.swatch { display: inline-block; width: 14px; height: 14px; border-radius: 3px;
  margin-right: 9px; vertical-align: -2px; border: 1px solid rgba(0, 0, 0, 0.25); }
img { max-width: 100%; height: auto; display: block; }
.wide { width: 100%; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0;
  margin: 0 0 16px; font-size: 0.9rem; }
figure { margin: 0 0 20px; }
figure:last-child { margin-bottom: 0; }
.triplet { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; }
.triplet img { width: 100%; border-radius: 6px; }
.triplet span { font-size: 0.8rem; color: var(--soft); }
figcaption { font-size: 0.875rem; color: var(--soft); }
.pairs { display: grid; grid-template-columns: max-content 1fr; gap: 4px 24px; margin: 0;
  font-size: 0.925rem; }
.pairs dt { color: var(--soft); }
.pairs dd { margin: 0; overflow-wrap: anywhere; }
.next { padding-left: 20px; margin: 0; }
pre { background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; margin: 6px 0 14px; overflow-x: auto; }
code { font: 0.875rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media (max-width: 640px) { .triplet { grid-template-columns: 1fr; } }
@media print { section { break-inside: avoid; } }
"""
