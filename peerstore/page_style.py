"""How the status page looks: the whole of its CSS."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfaf8; --text: #1f2328; --soft: #5d646d; --line: #dcd9d3; --raised: #fff;
  --blue: #2c5f92; --area: #cfdeed; --gap: #eceae5;
  --bad: #9c2f22; --bad-ground: #fcefec; --good: #2b6a3f; --good-ground: #eef6f0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #16181b; --text: #e4e4e1; --soft: #a2a8b0; --line: #34383e; --raised: #1d2024;
    --blue: #86b4e0; --area: #26394c; --gap: #262a2f;
    --bad: #f2a093; --bad-ground: #321d1a; --good: #93cfa5; --good-ground: #18281d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem; background: var(--ground);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1, h2, h3, p, dl, dd, figure, ul { margin: 0; padding: 0; }
h1 { font-size: 1.5rem; font-weight: 600; line-height: 1.25; }
h2 { font-size: 1.125rem; font-weight: 600; margin: 2.25rem 0 .75rem; }
h3 { font-size: 1rem; font-weight: 600; }
ul { list-style: none; }
code { font: .875em/1.5 ui-monospace, monospace; }
.note { margin-top: .75rem; }
.soft, figcaption p, figure > p, dt, th { color: var(--soft); font-size: .875rem; }
.state { margin-top: 1.25rem; padding: .75rem 1rem; border-left: .25rem solid; }
.state p { font-weight: 600; }
.well { background: var(--good-ground); border-color: var(--good); }
.well p { color: var(--good); }
.unwell { background: var(--bad-ground); border-color: var(--bad); }
.unwell p { color: var(--bad); }
.unwell ul { list-style: disc; padding-left: 1.25rem; margin-top: .25rem; }
.cards {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
}
.card, figure { background: var(--raised); border: 1px solid var(--line); padding: 1rem; }
.facts {
  display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr));
}
.facts dd { font-size: 1.25rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.facts small { display: block; font-size: .875rem; color: var(--soft); }
.uri { display: flex; flex-wrap: wrap; gap: 1rem; align-items: start; }
.uri svg { flex: none; width: 13rem; max-width: 100%; height: auto; }
.uri div { flex: 1 1 12rem; }
.uri code { user-select: all; }
.id {
  display: inline-block; max-width: 15ch; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; vertical-align: bottom;
}
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; }
th, td { padding: .4rem .75rem .4rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody th { white-space: nowrap; }
.count { text-align: right; padding-right: 0; white-space: nowrap; }
figure svg { display: block; width: 100%; height: auto; margin-top: .5rem; }
svg text { fill: var(--soft); font-size: 11px; }
.soft code { font-size: 1em; }
@media (max-width: 30rem) {
  figure { padding: .75rem .5rem; }
  svg text { font-size: 13px; }
}
svg .value { text-anchor: end; }
svg .time { text-anchor: middle; }
.area { fill: var(--area); }
.line {
  fill: none; stroke: var(--blue); stroke-width: 1.5;
  stroke-linecap: round; stroke-linejoin: round;
}
.bar { fill: var(--blue); }
.gap { fill: var(--gap); }
.grid, .axis { stroke: var(--line); stroke-width: 1; fill: none; }
.axis { stroke: var(--soft); }
"""
