"""One static HTML file that opens without network: table, figures, images side by side."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}th{cursor:pointer;vertical-align:bottom}tr:hover td{background:#f6f6f6}
figure{display:inline-block;margin:.5rem}figure img{max-width:100%}.plots img{width:500px}
.grid img{image-rendering:pixelated;width:480px}figcaption{font-size:13px;color:#555}small{color:#666}
"""
SORT = """
document.querySelectorAll('th').forEach((th, i) => th.onclick = () => {
  const body = th.closest('table').tBodies[0];
  const up = th.dataset.up = th.dataset.up === '1' ? '0' : '1';
  const key = r => { const t = r.cells[i].textContent, n = parseFloat(t); return isNaN(n) ? t : n };
  const sign = up === '1' ? 1 : -1;
  const compare = (a, b) => { const x = key(a), y = key(b); return (x > y ? 1 : x < y ? -1 : 0) * sign };
  [...body.rows].sort(compare).forEach(r => body.append(r));
});
"""


def page(
    title: str,
    headings: Sequence[str],
    cells: Sequence[Sequence[str]],
    plots: Sequence[Path],
    grids: Sequence[Path],
    about: dict[str, str],
) -> str:
    """The whole document."""
    head = "".join(f"<th>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in cells)
    facts = " · ".join(f"{escape(key)} {escape(str(value))}" for key, value in about.items())
    images = f"<h2>The same seeds by every method</h2><div class=grid>{_figures(grids)}</div>" if grids else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><p><small>{facts}</small></p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        "<p><small>Click a heading to sort.</small></p>"
        f"<h2>Quality against cost</h2><div class=plots>{_figures(plots)}</div>{images}<script>{SORT}</script></html>\n"
    )


def _figures(paths: Sequence[Path]) -> str:
    return "".join(
        f'<figure><img alt="{escape(path.stem)}" src="data:image/png;base64,{_encoded(path)}">'
        f"<figcaption>{escape(path.stem.replace('_', ' '))}</figcaption></figure>"
        for path in paths
    )


def _encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
