"""The two forms of a report: a page for people, and the same as text."""

import base64
from collections.abc import Sequence
from importlib import resources

import jinja2

from lbtrain.study.figures import Picture
from lbtrain.study.pages import Page
from lbtrain.study.sheets import Sheet

LOST = "Runs that diverged, failed or did not finish"
LEFT_OUT = "What was left out"


def html(content: Page, drawn: Sequence[Picture]) -> str:
    """Write the page: one file that loads nothing.

    Args:
        content: What it says.
        drawn: Its figures.

    Returns:
        HTML.
    """
    source = resources.files("lbtrain.study").joinpath("report.html.j2").read_text(encoding="utf-8")
    # Overrides and errors are text from outside, never markup.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(source)
    figures = [(section, [_image(picture) for picture in below]) for section, below in sections(drawn)]
    return template.render(page=content, topics=topics(content), figures=figures, lost=LOST, left_out=LEFT_OUT)


def markdown(content: Page, drawn: Sequence[Picture]) -> str:
    """Write the report as text.

    Args:
        content: What it says.
        drawn: Its figures, linked below `figures/`.

    Returns:
        Markdown.
    """
    parts = [f"# {_plain(content.title)}", _plain(content.overview)]
    if content.findings:
        parts.append("## Findings")
    for topic, texts in topics(content):
        parts += [f"### {topic}", "\n".join(f"- {_plain(text)}" for text in texts)]
    if drawn:
        parts.append("## Figures")
    for section, below in sections(drawn):
        parts += [f"### {_plain(section)}"]
        parts += [f"![{_plain(picture.alt)}](figures/{picture.name}.png)" for picture in below]
    for sheet in content.sheets:
        parts += _sheet(sheet)
    if content.lost:
        parts += [f"## {LOST}", _pipes(("run", "settings", "reason"), content.lost)]
    if content.left_out:
        parts += [f"## {LEFT_OUT}", "\n".join(f"- {_plain(entry.words)}" for entry in content.left_out)]
    if content.settings.body:
        parts += _sheet(content.settings)
    parts += ["## How to read this", "\n".join(f"- {_plain(note)}" for note in content.notes)]
    if content.made_with:
        parts.append(f"Made with {_plain(content.made_with)}.")
    return "\n\n".join(parts) + "\n"


def topics(content: Page) -> list[tuple[str, list[str]]]:
    """Group the findings under their headings.

    Args:
        content: The page.

    Returns:
        Topic and sentences, in order.
    """
    grouped: dict[str, list[str]] = {}
    for finding in content.findings:
        grouped.setdefault(finding.topic, []).append(finding.text)
    return list(grouped.items())


def sections(drawn: Sequence[Picture]) -> list[tuple[str, list[Picture]]]:
    """Group the figures under their headings.

    Args:
        drawn: The figures, in the page's order.

    Returns:
        Section and figures, in order.
    """
    grouped: dict[str, list[Picture]] = {}
    for picture in drawn:
        grouped.setdefault(picture.section, []).append(picture)
    return list(grouped.items())


def _image(picture: Picture) -> dict[str, object]:
    # The size stands in bytes 16 to 24 of a PNG; with it, a page that is still loading does not jump.
    width, height = (int.from_bytes(picture.png[start : start + 4], "big") for start in (16, 20))
    data = base64.b64encode(picture.png).decode()
    return {"alt": picture.alt, "name": picture.name, "data": data, "width": width, "height": height}


def _sheet(sheet: Sheet) -> list[str]:
    about = ["\n".join(f"- {_plain(text)}" for text in sheet.about)] if sheet.about else []
    return [f"## {sheet.title}", *about, _pipes(sheet.header, sheet.texts)]


def _pipes(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    # One line, and no character that Markdown would take for a cell, a tag, a link or emphasis.
    text = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|<>[]*`" else c for c in text)
