"""A self-contained HTML page: no network, no script; colours for a light and a dark page, and for paper."""

from html import escape


def page(title: str, state: str, body: str, style: str = "") -> str:
    """The whole page.

    Args:
      title: its heading.
      state: a few words beside it.
      body: HTML.
      style: CSS beside that of all pages.
    """
    return _PAGE.format(title=escape(title), state=escape(state), style=_STYLE + style, body=body)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{state}</p></header>
{body}
</body>
</html>
"""

# Six colours that stay apart for colour-blind eyes (Okabe and Ito), darkened for paper and lightened for a dark page.
_STYLE = """
:root { --page: #fff; --ink: #1c1e21; --soft: #62676e; --line: #dfe2e6; --card: #f6f7f8;
  --c0: #0069a8; --c1: #c25100; --c2: #00805e; --c3: #a84c86; --c4: #8a6d00; --c5: #3f4a54; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --ink: #e6e8ea; --soft: #9aa1a9; --line: #33383e; --card: #1f2226;
    --c0: #58b4f0; --c1: #f39b4d; --c2: #3fc79f; --c3: #dd94c1; --c4: #e0c34a; --c5: #b8c0c8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .8rem; }
h1 { margin: 0; font-size: 1.6rem; overflow-wrap: anywhere; } h2 { margin: 2rem 0 .6rem; font-size: 1.15rem; }
header p, small { color: var(--soft); } header p { margin: 0; }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .6rem;
  margin: 1.2rem 0; }
.headline div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; }
.headline dd { font-size: 1.45rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
small { display: block; font-size: .78rem; font-weight: 400; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; break-inside: avoid; } figcaption { font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 13px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
polyline { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
line.level { stroke: var(--soft); stroke-dasharray: 6 4; }
.c0 { --colour: var(--c0); } .c1 { --colour: var(--c1); } .c2 { --colour: var(--c2); } .c3 { --colour: var(--c3); }
.c4 { --colour: var(--c4); } .c5 { --colour: var(--c5); }
polyline { stroke: var(--colour); } circle { fill: var(--colour); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .2rem 0 0; padding: 0;
  font-size: .85rem; }
.legend li::before { content: ""; display: inline-block; width: 1.3em; margin-right: .4em; vertical-align: .25em;
  border-top: 2.5px solid var(--colour, var(--soft)); } .legend .level::before { border-top-style: dashed; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } .number { text-align: right; font-variant-numeric: tabular-nums; }
.sample { display: grid; grid-template-columns: auto 1fr; gap: .15rem .9rem; margin: 0 0 .8rem; padding: .7rem .9rem;
  background: var(--card); border-radius: .5rem; break-inside: avoid; } .sample dd { overflow-wrap: anywhere; }
mark { color: var(--page); border-radius: .3rem; padding: 0 .38rem; font-size: .8em; font-weight: 600; }
.m0 { background: var(--c0); } .m1 { background: var(--c1); } .m2 { background: var(--c2); }
.m3 { background: var(--c3); }
.m4 { background: var(--c4); } .m5 { background: var(--c5); }
pre { overflow-x: auto; padding: .8rem; background: var(--card); border-radius: .5rem; font-size: .82rem; }
details { margin-top: 2rem; } summary { cursor: pointer; font-weight: 600; }
@media (max-width: 30rem) { .sample { grid-template-columns: 1fr; gap: 0; } .sample dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; padding: 0; font-size: 12px; print-color-adjust: exact;
    -webkit-print-color-adjust: exact; }
  .charts { grid-template-columns: 1fr 1fr; } }
"""
