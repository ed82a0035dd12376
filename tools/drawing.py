"""The import table of tests/test_house.py, drawn: who may import whom."""
import html
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
W, H, GAP = 112, 34, 30  # of a box, and between two floors


def table():
    "(module -> what it may import, the running half, the law half), from the test that holds it."
    spec = importlib.util.spec_from_file_location("house", ROOT / "tests" / "test_house.py")
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    return house.ORDER, house.RUNNING, house.LAW


def below(order, name):
    "All that `name` reaches, over others too."
    found = set()
    for k in order.get(name, ()):
        found |= {k} | below(order, k)
    return found


def floors(order):
    "Module -> how many floors of imports it stands on."
    level = {}
    for name in order:  # the table lists what is imported before what imports it, but for a few
        def of(n): return level.setdefault(n, 1 + max(map(of, order[n]), default=-1))
        of(name)
    return level


def direct(order, name):
    "The imports of `name` that do not follow from its other ones."
    return sorted(k for k in order[name] if not any(k in below(order, other) for other in order[name] if other != k))


def _side(order, names):
    "Rows of boxes: module -> (column, row), lowest floor in row 0."
    level, rows = floors({k: order[k] & names for k in order if k in names}), {}
    for n in sorted(names, key=list(order).index):
        rows.setdefault(level[n], []).append(n)
    return rows


def import_map(links):
    "An SVG: the running half on the left, the law half on the right, what stands on both above, the zoo apart. Boxes lead to pages in `links`."
    order, running, law = table()
    above = {n for n in order if n not in running | law and not n.startswith("zoo.")}
    zoo = [n for n in order if n.startswith("zoo.")]
    left, right, top = _side(order, running), _side(order, law), _side(order, above)
    wide = lambda rows: max(len(r) for r in rows.values())
    lw, rw = (wide(s) * (W + 16) + 24 for s in (left, right))
    spare = max(len(zoo) * (W + 12) - lw - rw - 28, 0)
    lw, rw = lw + spare / 2, rw + spare / 2
    width = lw + rw + 28
    half_floors = max(len(left), len(right))
    top_y, half_y = 34, 34 + len(top) * (H + GAP) + 50
    zoo_y = half_y + half_floors * (H + GAP) + 56
    height = zoo_y + 64
    at = {}

    def lay(rows, x, w, y, floors_):
        for level, names in rows.items():
            step = w / len(names)
            for i, n in enumerate(names):
                at[n] = (x + step * (i + .5) - W / 2, y + (floors_ - 1 - level) * (H + GAP))
    lay(top, 0, width, top_y, len(top))
    lay(left, 0, lw, half_y, half_floors)
    lay(right, lw + 28, rw, half_y, half_floors)
    for i, n in enumerate(zoo):
        at[n] = (i * (width - W) / max(len(zoo) - 1, 1), zoo_y)
    parts = [f'<svg class="imports" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="Which module may import which; the table below says the same">']
    for x, w, label in ((0, lw, "running half: trains, and writes to a storage"), (lw + 28, rw, "law half: fits, and reads tables")):
        parts.append(f'<rect class="half" x="{x}" y="{half_y - 34}" width="{w}" height="{half_floors * (H + GAP) + 20}" rx="10"/><text class="label" x="{x + 14}" y="{half_y - 14}">{label}</text>')
    for y, label in ((top_y, "above both: charts, the live view, the study, its ways in"), (zoo_y, "models and data to start from")):
        parts.append(f'<text class="label" x="14" y="{y - 14}">{label}</text>')
    for n in order:
        for k in direct(order, n):
            (x1, y1), (x2, y2) = at[n], at[k]
            if y1 == y2:  # side by side
                x1, x2 = (x1 + W, x2) if x1 < x2 else (x1, x2 + W)
                parts.append(f'<path data-from="{n}" data-to="{k}" d="M{x1:.0f} {y1 + H / 2:.0f} Q{(x1 + x2) / 2:.0f} {y1 - 12:.0f} {x2:.0f} {y2 + H / 2:.0f}"/>')
                continue
            a, b = y1 + H, y2
            parts.append(f'<path data-from="{n}" data-to="{k}" d="M{x1 + W / 2:.0f} {a:.0f} C{x1 + W / 2:.0f} {(a + b) / 2:.0f} {x2 + W / 2:.0f} {(a + b) / 2:.0f} {x2 + W / 2:.0f} {b:.0f}"/>')
    for n, (x, y) in at.items():
        kind = "running" if n in running else "law" if n in law else "zoo" if n in zoo else "above"
        box = (f'<g class="box {kind}" data-module="{n}"><rect x="{x:.0f}" y="{y:.0f}" width="{W}" height="{H}" rx="6"/>'
               f'<text x="{x + W / 2:.0f}" y="{y + H / 2 + 5:.0f}">{html.escape(n)}</text></g>')
        parts.append(f'<a href="{links[n]}">{box}</a>' if n in links else box)
    return "\n".join([*parts, "</svg>"])


def import_rows(names):
    "The same as a Markdown table."
    order, running, law = table()
    lines = ["| Module | Page | May import |", "|---|---|---|"]
    for n, allowed in order.items():
        page = names.modules.get(f"scaling_nb.{n}")
        title = f"[{page.title}](/{page.docname}.ipynb)" if page else ""
        lines.append(f"| `{n}` | {title} | {', '.join(f'`{k}`' for k in sorted(allowed, key=list(order).index)) or 'nothing of the package'} |")
    return "\n".join(lines)
