"""nbdev's notebooks to pages for Sphinx: what each exported cell defines becomes an entry with its signature and a table of its parameters.

nbdev's processors do what they do for Quarto: hide, strip, filter. What is read here and not there: exported cells, which nbdev hides behind
`show_doc`. A page of this book is about them, so they stay, folded, below their entries; and no module is imported to draw a page."""
import ast
import html
import io
import json
import re
import tokenize
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import nbformat
from execnb.nbio import dict2nb
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, populate_language, rm_header_dash, strip_ansi

ROOT = Path(__file__).resolve().parents[1]
PROCESSORS = [populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash, clean_magics, hide_]
DIRECTIVE = re.compile(r"^#\|\s*([\w-]+):?\s*(.*?)\s*$")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def docname(page):
    "nbs/07a_isoflop.ipynb -> isoflop, as nbdev names its pages."
    page = Path(page)
    return str(page.with_name(re.sub(r"^\d+[a-z]?_", "", page.name)).with_suffix(""))


def directives(source):
    "The leading `#| key value` lines of a cell as a dict, and the rest."
    said, lines = {}, source.split("\n")
    while lines and (m := DIRECTIVE.match(lines[0])):
        said[m[1]] = m[2] or "true"
        lines.pop(0)
    return said, "\n".join(lines).strip("\n")


# What a cell defines

@dataclass
class Entry:
    "One public name: a function, a class with what hangs on it, a method set on its class afterwards."
    kind: str                # py:function, py:class, py:method, py:property, py:attribute
    name: str                # Within its module, with the class
    node: ast.AST
    code: str                # The cell it stands in
    module: str = ""
    page: str = ""
    inner: list = field(default_factory=list)

    @property
    def target(self): return f"{self.module}.{self.name}"

    @property
    def doc(self): return (ast.get_docstring(self.node) or "") if isinstance(self.node, DEFINITIONS) else ""

    @property
    def summary(self): return self.doc.split("\n\n")[0].replace("\n", " ")

    @property
    def signature(self):
        "Names and defaults; types stand in the table."
        if isinstance(self.node, ast.ClassDef):
            init = next((n for n in self.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            return self.name if init is None else f"{self.name}({_arguments(init)})"
        if self.kind in ("py:property", "py:attribute") or not isinstance(self.node, DEFINITIONS):
            return self.name
        returns = f" -> {ast.unparse(self.node.returns)}" if self.node.returns else ""
        return f"{self.name}({_arguments(self.node)}){returns}"

    @cached_property
    def rows(self):
        "(name, type, default, meaning) of parameters, fields or members; none where nothing is said beyond the signature."
        if isinstance(self.node, ast.ClassDef):
            init = next((n for n in self.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            return _fields(self.node, self.code) if init is None else _parameters(init, self.code)
        return _parameters(self.node, self.code) if isinstance(self.node, DEFINITIONS) and self.kind != "py:property" else []


def _arguments(f):
    "The arguments of a definition, without types and without self."
    a, parts = f.args, []
    plain = [*a.posonlyargs, *a.args]
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    for i, (p, d) in enumerate(zip(plain, defaults)):
        if i == 0 and p.arg in ("self", "cls"):
            continue
        parts.append(p.arg + ("" if d is None else f"={ast.unparse(d)}"))
    if a.vararg:
        parts.append("*" + a.vararg.arg)
    elif a.kwonlyargs:
        parts.append("*")
    parts += [p.arg + ("" if d is None else f"={ast.unparse(d)}") for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    return ", ".join(parts + (["**" + a.kwarg.arg] if a.kwarg else []))


def _comments(code):
    "Line -> the comment that ends it."
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokens if t.type == tokenize.COMMENT}


def _parameters(f, code):
    "Arguments and the return, each with the comment that ends its line; arguments of one line share a row."
    said, a, rows = _comments(code), f.args, {}
    plain = [*a.posonlyargs, *a.args]
    given = [*zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults),
             *([(a.kwarg, None)] if a.kwarg else [])]
    for p, d in given:
        if p.arg in ("self", "cls") and p in plain[:1]:
            continue
        name = ("*" if p is a.vararg else "**" if p is a.kwarg else "") + p.arg
        kind, default = ast.unparse(p.annotation) if p.annotation else "", ast.unparse(d) if d is not None else ""
        line = max(p.end_lineno, d.end_lineno if d is not None else 0)
        if line in rows and rows[line][1:3] == [kind, default]:
            rows[line][0] += f", {name}"
        else:
            rows[line if line not in rows else line + len(rows) / 1e3] = [name, kind, default, said.get(line, "")]
    header = min((n.lineno for n in f.body), default=f.end_lineno)
    last = max([n.end_lineno for n in ast.walk(f.args) if hasattr(n, "end_lineno")] + [f.lineno])
    returned = next((said[line] for line in range(last, header + 1) if line in said and line not in rows and line < header + (f.lineno == header)), "")
    table = list(rows.values())
    if not any(r[3] for r in table) and not returned:
        return []
    return table + ([["returns", ast.unparse(f.returns) if f.returns else "", "", returned]] if f.returns or returned else [])


def _fields(c, code):
    "The fields of a dataclass, or the members of an Enum."
    said, rows = _comments(code), []
    for n in c.body:
        if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_"):
            value = ast.unparse(n.value) if n.value is not None else ""
            rows.append([n.target.id, ast.unparse(n.annotation), value, said.get(n.end_lineno, "")])
        elif isinstance(n, ast.Assign) and any("Enum" in ast.unparse(b) for b in c.bases):
            rows.append([ast.unparse(n.targets[0]), "", "", n.value.value if isinstance(n.value, ast.Constant) and isinstance(n.value.value, str) else ast.unparse(n.value)])
    return rows


def _public(name): return not name.startswith("_")


def _decorators(n): return {ast.unparse(d).split("(")[0].split(".")[-1] for d in n.decorator_list}


def _method_kind(n): return "py:property" if _decorators(n) & {"property", "cached_property"} else "py:method"


def entries(code, module, page):
    "The public names that a cell defines."
    tree = ast.parse(code)
    local = {n.name: n for n in tree.body if isinstance(n, DEFINITIONS)}
    found = []
    for n in tree.body:
        if isinstance(n, DEFINITIONS) and _public(n.name):
            if isinstance(n, ast.ClassDef):
                e = Entry("py:class", n.name, n, code)
                e.inner = [Entry(_method_kind(m), f"{n.name}.{m.name}", m, code) for m in n.body
                           if isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)) and _public(m.name) and "setter" not in _decorators(m)]
                found.append(e)
            else:
                found.append(Entry("py:function", n.name, n, code))
        elif isinstance(n, ast.Assign):  # Study.report = _report; a, b = f, g; A.b = property(_b)
            targets = n.targets[0].elts if isinstance(n.targets[0], ast.Tuple) else n.targets
            values = n.value.elts if isinstance(n.value, ast.Tuple) else [n.value] * len(targets)
            for t, v in zip(targets, values):
                if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id[0].isupper() and _public(t.attr):
                    wrapped = isinstance(v, ast.Call) and ast.unparse(v.func).split(".")[-1] in ("property", "cached_property")
                    inside = v.args[0] if wrapped else v
                    node = local.get(inside.id) if isinstance(inside, ast.Name) else None
                    found.append(Entry("py:property" if wrapped else "py:method", f"{t.value.id}.{t.attr}", node or inside, code))
    for e in found:
        for x in [e, *e.inner]:
            x.module, x.page = module, page
    return found


# From a page to what Sphinx reads

@dataclass
class Page:
    path: Path             # Under nbs/
    nb: object
    module: str = ""       # scaling_nb.fitting, or nothing for a guide

    @cached_property
    def title(self):
        return next(m[1] for c in self.nb.cells if c.cell_type == "markdown" and (m := re.search(r"^# (.+)$", c.source, re.M)))

    @cached_property
    def docname(self): return docname(self.path)

    @cached_property
    def cells(self):
        "(cell, directives, source without them)"
        return [(c, *(directives(c.source) if c.cell_type == "code" else ({}, c.source))) for c in self.nb.cells]

    @cached_property
    def entries(self):
        "Cell id -> what it defines"
        return {c.id: entries(code, self.module, self.docname) for c, said, code in self.cells if "export" in said}

    @cached_property
    def names(self):
        "Names of the package that this page's code uses: imported, or defined here."
        used, codes = {}, []
        for c, _, code in self.cells:
            codes += [code] if c.cell_type == "code" else re.findall(r"^```python\n(.*?)\n```", code, re.S | re.M)
            used |= {e.name: e.name for e in self.entries.get(c.id, []) if "." not in e.name}
        for code in codes:
            try:
                tree = ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.M))
            except SyntaxError:
                continue
            for n in ast.walk(tree):
                if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("scaling_nb"):
                    used |= {a.asname or a.name: a.name for a in n.names}
        return used


def read_page(path, nb):
    "A page from an executed notebook, by way of nbdev's processors."
    nb = dict2nb(json.loads(nbformat.writes(nb)))
    NBProcessor(nb=nb, procs=PROCESSORS, rm_directives=False, process=True)
    nb = nbformat.from_dict(json.loads(json.dumps({**nb, "cells": [{k: v for k, v in c.items() if not k.endswith("_") and k != "idx_"} for c in nb.cells]}, default=str)))
    exp = next((m[1] for c in nb.cells if c.cell_type == "code" and (m := re.search(r"#\|\s*default_exp\s+(\S+)", c.source))), None)
    return Page(Path(path), nb, f"scaling_nb.{exp}" if exp else "")


class Names:
    "Every public name of the package, and which entry a word in backticks means."
    def __init__(self, pages):
        self.pages = pages
        self.all = [x for p in pages for found in p.entries.values() for e in found for x in (e, *e.inner)]
        self.by_target, self.by_name = {e.target: e for e in self.all}, {}
        for e in self.all:
            self.by_name.setdefault(e.name, []).append(e)
        self.modules = {p.module: p for p in pages if p.module}

    def find(self, word, page=None):
        "The entry called `word`, that of this page first; None where there is none or where there are several."
        word = word.removeprefix("scaling_nb.")
        found = self.by_name.get(word, [])
        here = [e for e in found if page is not None and e.page == page.docname]
        if len(here) == 1 or len(found) == 1:
            return (here or found)[0]
        return self.by_target.get("scaling_nb." + word)


_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)|\$[^$\n]+\$", re.S)
_WORD = re.compile(r"^([A-Za-z_][\w.]*)(\([^<>`]*\))?$")
_PICTURE = re.compile(r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="docs/_static/([\w.-]+)">\s*<img src="docs/_static/([\w.-]+)"([^>]*)>\s*</picture>')
_CODE_OR_LINK = re.compile(r"```[\s\S]*?```|\$\$[\s\S]*?\$\$|\$[^$\n]+\$|\[[^\]]*\]\([^)]*\)|^#[^\n]*$|(?<!`)`[^`\n]+`(?!`)", re.M)


def linked(span, names, page):
    "A code span as a link to what it names, if it names something of ours."
    word = span.strip("`")
    if m := _WORD.match(word):
        if e := names.find(m[1], page):
            return f"{{py:obj}}`{word} <{e.target}>`"
        if (m := word if word.startswith("scaling_nb.") else "") in names.modules and names.modules[m] is not page:
            return f"{{py:mod}}`{word} <{m}>`"
    if (m := re.match(r"^nbs/([\w/]+\.ipynb)$", word)) and (ROOT / word).exists():
        return f"[{span}](/{docname(m[1])}.ipynb)"
    return span


def prose(text, names, page, folder="nbs"):
    "Markdown of a notebook (or of a file in the root) as MyST: links between pages by their names here, names of ours as links."
    def one(m):
        s = m[0]
        if s.startswith("`") and not s.startswith("```"):
            return linked(s, names, page)
        if s.startswith("["):
            return re.sub(r"\]\(([^)#\s]+?)\.(ipynb|md)(#[^)]*)?\)", lambda k: f"]({_place(k[1], k[2], page, folder)}{k[3] or ''})", s)
        return s
    return _CODE_OR_LINK.sub(one, _PICTURE.sub(_two_pictures, text))


def _two_pictures(m):
    "GitHub shows one of two pictures by the reader's setting; here the page's own switch between light and dark decides."
    dark, light, rest = m.groups()
    return f'<img class="only-light" src="_static/{light}"{rest}><img class="only-dark" src="_static/{dark}"{rest}>'


def _place(stem, ext, page, folder):
    "Where a link of the source leads here; from the root of the site."
    at = (ROOT / folder / ((page.path.parent if page else Path()) / f"{stem}.{ext}")).resolve()
    if not at.exists() and page is not None and str(page.path) == "index.ipynb":
        at = ROOT / f"{stem}.{ext}"  # index.ipynb is the README, whose links start from the root
    if not at.exists():
        raise FileNotFoundError(f"A link must lead to a page that is there, but {stem}.{ext} of {page.path if page else folder} is not.")
    if at.is_relative_to(ROOT / "nbs"):
        return f"/{docname(at.relative_to(ROOT / 'nbs'))}.ipynb"
    return f"/{at.stem.lower()}.md"


_MARKS = re.compile(r"([\\*_<>\[\]$|~#^{}&!-])")


def plain(text, names, page):
    "A docstring or a comment as Markdown: its backticks, its formulas and the names of our classes mean something, nothing else."
    def words(s):
        return re.sub(r"\b[A-Z][a-z]+[A-Z]\w*\b", lambda m: linked(f"`{m[0]}`", names, page) if names.find(m[0], page) else m[0], _MARKS.sub(r"\\\1", s))
    parts, end = [], 0
    for m in _SPAN.finditer(text):
        parts += [words(text[end:m.start()]), m[0] if m[0][0] == "$" else linked(m[0], names, page).replace("|", "\\|")]
        end = m.end()
    return "".join(parts) + words(text[end:])


def _cell(text, names, page): return plain(" ".join(text.split()), names, page)


def _code(text, names, page):
    "A type or a default in a table; a type that is ours is a link."
    return linked(f"`{text}`", names, page).replace("|", "\\|") if text and "`" not in text else _cell(text, names, page)


def table(rows, names, page, first):
    "A table of parameters; columns that say nothing are left out."
    heads = [first, "Type", "Default", "Meaning"]
    use = [i for i in range(4) if i in (0, 3) or any(r[i] for r in rows)]
    lines = ["| " + " | ".join(heads[i] for i in use) + " |", "|" + "---|" * len(use)]
    for r in rows:
        cells = [f"*{r[0]}*" if r[0] == "returns" else ", ".join(f"`{n}`" for n in r[0].split(", ")), *(_code(v, names, page) for v in r[1:3]), _cell(r[3], names, page)]
        lines.append("| " + " | ".join(cells[i] for i in use) + " |")
    return "\n".join(lines)


def card(e, names, page, fence=8):
    "An entry as a directive of Sphinx's Python domain, with what hangs on it inside."
    ticks = "`" * fence
    body = [plain(e.doc, names, page)] if e.doc else []
    if e.rows:
        kind = "Member" if isinstance(e.node, ast.ClassDef) and any("Enum" in ast.unparse(b) for b in e.node.bases) else "Field" if e.kind == "py:class" and "(" not in e.signature else "Parameter"
        body.append(table(e.rows, names, page, kind))
    body += [card(x, names, page, fence - 1) for x in e.inner]
    name = e.signature if fence == 8 else e.signature.split(".", 1)[1] if "." in e.signature.split("(")[0] else e.signature
    return f"{ticks}{{{e.kind}}} {name}\n:module: {e.module}\n\n" + "\n\n".join(body) + f"\n{ticks}"


def _fold(cell, code, label):
    "A cell whose code is folded under `label`."
    cell.source = code
    cell.metadata = nbformat.from_dict({"tags": ["hide-input", "exported"], "mystnb": {"code_prompt_show": label, "code_prompt_hide": label}})
    return cell


def _label(code):
    "What is in a folded cell: its names, and for a single helper what it is for."
    tree = ast.parse(code)
    made = [n.name for n in tree.body if isinstance(n, DEFINITIONS)]
    values = [ast.unparse(t) for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    if not made and not values:
        return "Imports of this module"
    names = made or values
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if made and all(not _public(n) for n in made):
        doc = next((ast.get_docstring(n) for n in tree.body if isinstance(n, DEFINITIONS) and ast.get_docstring(n)), "") if len(made) == 1 else ""
        return f"Helper{'s' * (len(made) > 1)}: {shown}" + (f" – {doc.splitlines()[0].replace('`', '')}" if doc else "")
    return f"Source: {shown}"


def chart(spec, svg):
    "A chart that the site's own copy of Vega draws when it is looked at; until then, and without scripts, its picture."
    data = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")
    words = html.escape(spec.get("description") or "chart", quote=True)
    return f'<figure class="chart" role="img" aria-label="{words}"><div class="still">{svg}</div><script type="application/json">{data}</script></figure>'


def outputs(cell):
    "The richest form of each output that needs no kernel."
    for o in cell.outputs:
        data = o.get("data", {})
        data.pop("application/vnd.jupyter.widget-view+json", None)
        for k in [k for k in data if "vnd.vegalite" in k]:
            svg = data.pop("image/svg+xml", "")
            data["text/html"] = chart({**data.pop(k), "$schema": "https://vega.github.io/schema/vega-lite/v6.json"}, svg)
            data.pop("image/png", None)
    return cell


def markdown_cell(text): return nbformat.v4.new_markdown_cell(text)


def adapt(page, names):
    "The notebook of a page as MyST-NB is to read it."
    cells, first = [], True
    for c, said, code in page.cells:
        if c.cell_type == "markdown":
            cells.append(markdown_cell(prose(c.source, names, page)))
            if first and page.module:
                cells.append(markdown_cell(f"```{{py:module}} {page.module}\n```\n\n:::{{container}} origin\nModule `{page.module}`, written as `nbs/{page.path}`\n:::"))
            first = False
        elif c.cell_type == "code":
            if "hide" in said or "default_exp" in said or said.get("include") == "false" or not code:
                continue
            if "export" in said:
                cells += [markdown_cell(card(e, names, page)) for e in page.entries[c.id]]
                cells.append(_fold(c, code, _label(code)))
                continue
            c.source = code
            tags = [t for k, v, t in (("echo", "false", "remove-input"), ("output", "false", "remove-output"), ("code-fold", "true", "hide-input")) if said.get(k) == v]
            c.metadata = nbformat.from_dict({"tags": tags, "mystnb": {"image": {"alt": "picture drawn by the code above"}}})
            cells.append(outputs(c))
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python"}})
