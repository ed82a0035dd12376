"""The site: MyST notebooks that tools/make_docs.py wrote, in furo, with nothing from elsewhere."""
import ast
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

HERE = Path(__file__).parent
version = release = re.search(r"^version = (.+)$", (HERE.parent / "settings.ini").read_text(), re.M)[1]
project, author, copyright = "scaling_nb", "scaling_nb developers", f"2026 onwards, scaling_nb developers. Version {release}, Apache License 2.0"
extensions = ["myst_nb", "sphinx_copybutton"]
nb_execution_mode = "off"  # pages come executed: tools/executed.py
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
smartquotes = False  # quotes in comments are code
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures; those that are ours are links in the tables
suppress_warnings = ["myst.header"]  # a lesson may begin below a section
exclude_patterns = ["jupyter_execute"]
add_module_names = False
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
html_theme = "furo"
html_title = "scaling_nb"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = [str(HERE / "_static")]
html_css_files = ["site.css"]
html_js_files = [("vega.js", {"defer": "defer"}), ("charts.js", {"defer": "defer"}), ("folds.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad", "color-api-name": "#0b5cad", "color-api-pre-name": "#59636e"},
    "dark_css_variables": {"color-brand-primary": "#6cb0ff", "color-brand-content": "#6cb0ff", "color-api-name": "#8cc2ff", "color-api-pre-name": "#a3acb8"},
    "navigation_with_keys": True,
    "top_of_page_buttons": [],
}
copybutton_exclude = ".linenos, .gp, .go"


_FUNCTION = re.compile(r"(<mi>(?:ln|log|exp|max|min)</mi>)(?=<m(?:i|n|text|sub|sup|subsup|mrow)>)")


def _formula(node, **kw):
    "A formula as MathML, with the thin space between a function and its argument."
    return _FUNCTION.sub(r'\1<mspace width="0.17em"/>', convert(node.astext(), **kw))


def _inline(self, node):
    self.body.append(_formula(node))
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(f'<div class="math">{_formula(node, display="block")}</div>')
    raise nodes.SkipNode


_HIGHLIGHTED = re.compile(r'<div class="highlight">.*?</div>', re.S)
_NAME = re.compile(r'(?<!<span class="o">\.</span>)<span class="n">(\w+)</span>|<span class="nn">(scaling_nb\.[\w.]+)</span>')


def link_code(app, pagename, templatename, context, doctree):
    "Names of the package in a page's code lead to their entries."
    used = app.config.names_used.get(pagename, {})
    if "body" not in context:
        return
    objects = app.env.get_domain("py").objects

    def link(m):
        target = used.get(m[1]) if m[1] else m[2]
        if target not in objects or objects[target].docname == pagename and m[2]:
            return m[0]
        o = objects[target]
        return f'<a class="code-link" href="{app.builder.get_relative_uri(pagename, o.docname)}#{o.node_id}" title="{target}">{m[0]}</a>'
    context["body"] = _HIGHLIGHTED.sub(lambda m: _NAME.sub(link, m[0]), context["body"])


def setup(app):
    used = Path(app.srcdir) / "names.py"
    app.add_config_value("names_used", ast.literal_eval(used.read_text()) if used.exists() else {}, "html")
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
