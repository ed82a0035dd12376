"""Write README.md from nbs/index.ipynb (nbdev_readme would need Quarto)."""
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]


def markdown(path):
    "Prose, code and text outputs of a notebook; cells that begin with `#| hide` are left out."
    parts = []
    for c in nbformat.read(path, 4).cells:
        source = c.source.strip()
        if c.cell_type == "markdown":
            parts.append(source)
        elif not re.match(r"#\|\s*hide", source):
            code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
            parts.append(f"```python\n{code}\n```")
            text = "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in c.get("outputs", [])).strip()
            if text:
                parts.append(f"```\n{text}\n```")
    return "<!-- Written by tools/readme.py from nbs/index.ipynb -->\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(markdown(ROOT / "nbs" / "index.ipynb"), encoding="utf-8")
