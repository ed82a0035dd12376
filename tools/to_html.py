"""One executed notebook to one HTML file that needs no network, charts interactive: python tools/to_html.py nb.ipynb out.html

Plain `jupyter nbconvert --to html` shows the stored SVG. Here Vega is in the file once, and the page follows the reader's light or dark setting.
Cells marked `#| hide` are left out, as are the sources of `#| echo: false` and the outputs of `#| output: false`. Formulas stay as they are written."""
import html
import pathlib
import re
import sys

import nbformat
from nbconvert.filters import Highlight2HTML, markdown2html, strip_ansi
from pygments.formatters import HtmlFormatter

from scaling_nb.charts import chart_html, html_page

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
DIRECTIVE = re.compile(r"^#\|\s*(.*?)\s*$", re.M)


def style():
    "Colours of the code, for light and dark."
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("default", "github-dark"))
    dark = "\n".join(line for line in dark.splitlines() if line.startswith(".highlight"))
    return (f"<style>{light}\n.highlight{{background:none!important}}.highlight pre{{margin:1.2em 0 .6em}}\n@media (prefers-color-scheme:dark){{{dark}\n.highlight{{background:none!important}}}}\n"
            "pre.err{border-left:3px solid #e17267}.MathJax{display:inline}</style>")


def output_html(output):
    "One stored output, as the richest thing a page can show."
    if output.output_type == "stream":
        text = strip_ansi(output.text).strip("\n")
        return f'<pre class="out{" err" if output.name == "stderr" else ""}">{html.escape(text)}</pre>' if text else ""
    if output.output_type == "error":
        return f'<pre class="out err">{html.escape(strip_ansi(chr(10).join(output.traceback)))}</pre>'
    data = output.get("data", {})
    if spec := next((data[k] for k in data if "vnd.vegalite" in k), None):
        return chart_html({**spec, "$schema": SCHEMA}, data.get("image/svg+xml"))
    if "text/html" in data:
        return data["text/html"]
    if "image/svg+xml" in data:
        return f"<figure>{data['image/svg+xml']}</figure>"
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{data["image/png"].strip()}">'
    if "text/markdown" in data:
        return markdown2html(data["text/markdown"])
    text = data.get("text/plain", "")
    return f'<pre class="out">{html.escape(text)}</pre>' if text else ""


def to_html(nb, title=None):
    "A notebook (a path, or a node that was executed) as one self-contained, interactive HTML page."
    if isinstance(nb, (str, pathlib.Path)):
        nb = nbformat.read(nb, 4)
    code, parts = Highlight2HTML(), [style()]
    for cell in nb.cells:
        said = DIRECTIVE.findall(cell.source) if cell.cell_type == "code" else []
        if any(re.match(r"(hide|include:\s*false)$", d) for d in said):
            continue
        if cell.cell_type == "markdown":
            parts.append(re.sub(r'<a class="anchor-link"[^>]*>.*?</a>', "", markdown2html(cell.source)))
        elif cell.cell_type == "code":
            source = DIRECTIVE.sub("", cell.source).strip("\n")
            if source and not any(re.match(r"echo:\s*false$", d) for d in said):
                parts.append(code(source, language="python"))
            if not any(re.match(r"output:\s*false$", d) for d in said):
                parts += [output_html(o) for o in cell.outputs]
    first = next((m for c in nb.cells if c.cell_type == "markdown" and (m := re.search(r"^# (.+)$", c.source, re.M))), None)
    return html_page(title or (first.group(1) if first else "Notebook"), [p for p in parts if p], heading=first is None)


if __name__ == "__main__":
    page = to_html(sys.argv[1])
    pathlib.Path(sys.argv[2]).write_text(page, encoding="utf-8")
    print(f"{sys.argv[2]}: {len(page) / 1e6:.1f} MB")
