"""Adds the pages of the site that are made from the code, and mends the links that lead out of docs/. See mkdocs.yml.

- `steps.md` and `models.md`: every step with a picture of what it does, every model with a drawing of its layers.
- `api/`: a page for each sub-package of library/, filled by mkdocstrings.
- The documents outside of docs/ (README.md, CONTRIBUTING.md ...) as pages, and other files that documents link to.
"""

from __future__ import annotations

import html
import io
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from PIL import Image

from jobs.inspection.catalogs import ModelFacts, describe_model, describe_step, example_picture
from library.models import names
from library.steps.help import ordered_steps

ROOT = Path(__file__).parents[2]
_LINKED = "files"
#: Documents outside of docs/ by their path in the repository, and the pages that they become.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "benchmarks/README.md": "benchmarks.md",
    "k8s/README.md": "k8s-manifests.md",
}
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)]*)?\))")
_SOURCES = {page: source for source, page in PAGES.items()}


def on_config(config: Any) -> Any:
    """Adds the decisions and the API to the navigation."""
    decisions = sorted(f"decisions/{path.name}" for path in (ROOT / "docs/decisions").glob("*.md"))
    config.nav += [{"Decisions": decisions}, {"API of library/": [{title: uri} for uri, title in _api_pages()]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds every page that no file in docs/ holds, and the files that documents link to."""
    texts = {PAGES[source]: (ROOT / source).read_text("utf-8") for source in PAGES}
    texts |= {uri: _api_page(title) for uri, title in _api_pages()}
    texts["steps.md"], pictures = _step_catalog()
    texts["models.md"], drawings = _model_catalog()
    for uri, text in texts.items():
        files.append(File.generated(config, uri, content=text))
    for uri, data in {**pictures, **drawings}.items():
        files.append(File.generated(config, uri, content=data))
    for path in sorted(_linked_files(files)):
        files.append(File.generated(config, f"{_LINKED}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    page_uri: str = page.file.src_uri

    def mended(match: re.Match[str]) -> str:
        target = _repository_path(page_uri, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(_site_uri(target), posixpath.dirname(page_uri) or ".") + match[3]

    return _LINK.sub(mended, markdown)


def on_post_build(config: Any) -> None:
    """Fails the build if a page would fetch anything from another host."""
    fetched = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\bsrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*"(?:https?:)?//'
    )
    for page in Path(config.site_dir).rglob("*.html"):
        if fetched.search(page.read_text("utf-8")):
            raise PluginError(f"{page} fetches from another host")


def _repository_path(page_uri: str, link: str) -> str | None:
    """Path in the repository of what a page's link leads to; None for addresses and for pages without a source."""
    if "://" in link or link.startswith("mailto:"):
        return None
    source = _SOURCES.get(page_uri, f"docs/{page_uri}")
    if not (ROOT / source).exists():
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _site_uri(path: str) -> str:
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"{_LINKED}/{path}")


def _linked_files(files: Files) -> set[str]:
    """Files of the repository that are not pages of the site and that a document links to."""
    linked: set[str] = set()
    for file in files.documentation_pages():
        source = ROOT / _SOURCES.get(file.src_uri, f"docs/{file.src_uri}")
        text = source.read_text("utf-8") if source.exists() else ""
        for match in _LINK.finditer(text):
            path = _repository_path(file.src_uri, match[2])
            if path is not None and (ROOT / path).is_file() and _site_uri(path).startswith(_LINKED):
                linked.add(path)
    return linked


def _api_pages() -> list[tuple[str, str]]:
    """A page for each sub-package of library/ and each module directly in it: its place in the site, and its name."""
    paths = [path for path in (ROOT / "library").iterdir() if (path / "__init__.py").exists() or path.suffix == ".py"]
    modules = sorted(f"library.{path.stem}" for path in paths if path.stem != "__init__")
    return [(f"api/{name}.md", name) for name in modules]


def _api_page(package: str) -> str:
    folder = ROOT / package.replace(".", "/")
    modules = [package]
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__init__" or len(parts) > len(Path(package.replace(".", "/")).parts) + 1:
            modules.append(".".join(part for part in parts if part != "__init__"))
    options = "    options:\n      members: {members}\n"
    blocks = [f"# {package}\n"]
    for module in dict.fromkeys(modules):
        is_package = (ROOT / module.replace(".", "/")).is_dir()
        # A package repeats what its modules define: its own docstring is enough.
        blocks.append(f"::: {module}\n" + (options.format(members="false") if is_package else ""))
    return "\n".join(blocks)


def _step_catalog() -> tuple[str, dict[str, bytes]]:
    """Markdown, and pictures by their place in the site."""
    lines = [
        "# Steps",
        "",
        "Every step of a pipeline, with a picture of what it does. `striate steps NAME` shows the same for one.",
    ]
    pictures: dict[str, bytes] = {}
    kind = None
    for cls in ordered_steps():
        if cls.kind != kind:
            kind = cls.kind
            lines += ["", f"## {kind.capitalize()}s"]
        step = describe_step(cls.name)
        png, result = example_picture(cls.name)
        uri = f"pictures/steps/{cls.name}.webp"
        pictures[uri] = _webp(png)
        text = re.sub(r"Raises:\n +", "Raises ", step.help)
        lines += ["", f"### {cls.name}", "", text, "", "    " + step.example, ""]
        lines += [f"![A photo before and after {cls.name}: {result}]({uri})", ""]
        if step.parameters:
            lines += ["| parameter | type | default | |", "|---|---|---|---|"]
        for each in step.parameters:
            default = "(required)" if each.required else f"`{each.default}`"
            lines.append(f"| `{each.name}` | `{_cell(each.type)}` | {_cell(default)} | {_cell(each.help)} |")
    return "\n".join(lines) + "\n", pictures


def _webp(png: bytes) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def _model_catalog() -> tuple[str, dict[str, bytes]]:
    """Markdown, and drawings by their place in the site."""
    lines = [
        "# Models",
        "",
        'Every model that a recipe can name; `timm("NAME")` takes any other model of timm.',
        "Parameters and multiply-adds are computed from the network, for its own input size and number of classes.",
        "`striate models NAME --layers` lists the layers.",
        "",
        "In a drawing each bar is a layer from input to output: its height is the side of its output in pixels.",
        "Blue is a convolution, orange a pooling layer, grey a dense layer.",
        "",
        "| model | year | parameters | multiply-adds | input |",
        "|---|---|---|---|---|",
    ]
    sections: list[str] = []
    drawings: dict[str, bytes] = {}
    for name in names():
        model = describe_model(name, layers=True)
        channels, height, width = model.input_size
        figures = f"{model.parameters:,} | {model.multiply_adds:,} | {height}x{width}x{channels}"
        lines.append(f"| [{name}](#{name}) | {model.year} | {figures} |")
        uri = f"pictures/models/{name}.svg"
        drawings[uri] = _drawing(model).encode()
        origin = f"{model.authors}: [{model.title}]({model.paper}), {model.year}."
        note = f" Differs from the paper: {model.note}." if model.note else ""
        sections += ["", f"## {name}", "", origin + note, "", f"![The layers of {name}]({uri})"]
        choices = [f"| `{each.name}` | `{each.default}` | {_cell(each.help)} |" for each in model.choices]
        if choices:
            sections += ["", "| parameter | default | |", "|---|---|---|", *choices]
    return "\n".join(lines + sections) + "\n", drawings


def _drawing(model: ModelFacts) -> str:
    """A bar for each layer, as SVG."""
    layers = model.per_layer or ()
    side = max([model.input_size[1], *(layer.output[1] for layer in layers if len(layer.output) == 3)])
    step = 720 / len(layers)
    bars: list[str] = []
    for number, layer in enumerate(layers):
        output = layer.output
        height = max(3.0, 110 * output[1] / side) if len(output) == 3 else 3.0
        colour = "#d98a3d" if "pool" in layer.kind else "#4a7fa7" if len(output) == 3 else "#7d8a93"
        title = html.escape(f"{layer.name}: {layer.kind}, {'x'.join(map(str, output))}")
        place = f'x="{number * step:.2f}" y="{60 - height / 2:.2f}" width="{max(step - 1, step * 0.7):.2f}"'
        bars.append(f'<rect {place} height="{height:.2f}" fill="{colour}"><title>{title}</title></rect>')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 120" role="img">'
        f"<title>{html.escape(model.name)}: {len(layers)} layers</title>" + "".join(bars) + "</svg>\n"
    )


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
