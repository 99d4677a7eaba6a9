"""The run as a page: one file, no network, bars drawn as SVG."""

from __future__ import annotations

from html import escape

from mpifs.bench.report import Document, human, title_of

_BAR = 18  # pixels of a bar and the gap below it.
_LABEL = 210
_WIDTH = 430
_NEAR = 3.0
_STYLE = """
:root{--ink:#1b1f24;--soft:#687078;--paper:#fff;--line:#e3e6ea;--own:#1f6feb;--limit:#b8c0cc}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#98a0aa;--paper:#14171b;
--line:#2a2f36;--own:#58a6ff;--limit:#4a525c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1500px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em} p,figcaption span{color:var(--soft)}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(680px,1fr));gap:1.2em 2em}
figure{margin:0;border-top:1px solid var(--line);padding-top:.5em}
figcaption{font-weight:600} figcaption span{font-weight:400}
svg{width:100%;height:auto} text{font:12px system-ui,sans-serif;fill:var(--ink)}
.own{fill:var(--own)} .limit{fill:var(--limit)}
.reach{stroke:var(--ink);stroke-width:1.2} .value{fill:var(--soft)}
"""


def page_of(document: Document) -> str:
    """A whole HTML document."""
    settings, machine = document["settings"], document["machine"]
    names = ", ".join(target["name"] for target in document["targets"])
    facts = (
        f"{document['began']}, {document['seconds']:.0f} s; {settings['size'] >> 20} MiB, "
        f"{settings['files']} files, {settings['repeats']} rounds; {settings['workers']} workers, "
        f"chunks of {settings['chunk_size'] >> 10} KiB, {settings['checksum']}; "
        f"{machine['processors']} processors, Linux {machine['kernel']}, "
        f"Python {machine['python']}, {machine['mpi']}; load {machine['load_before']} before, "
        f"{machine['load_after']} after"
    )
    figures = "\n".join(_figure(phase) for phase in document["phases"] if phase["targets"])
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>mpifs bench: {escape(names)}</title>\n<style>{_STYLE}</style>\n"
        f"<h1>mpifs bench: {escape(names)}</h1>\n<p>{escape(facts)}</p>\n"
        "<p>Bars are medians, lines reach from the lowest to the highest round. Blue is what was "
        "measured, grey the limits it lives under; the share is of the lowest limit.</p>\n"
        f"<main>\n{figures}\n</main>\n{_ratios(document)}</html>\n"
    )


def _figure(phase: Document) -> str:
    """One phase: a bar per place and limit."""
    bars = [(name, each, "own") for name, each in phase["targets"].items()]
    others = {**phase["limits"], **phase["beside"]}
    bars += [(title_of(name), each, "limit") for name, each in others.items()]
    scale = _scale(phase)
    rows = "".join(_bar(number, *bar, scale) for number, bar in enumerate(bars))
    width, height = _LABEL + _WIDTH + 90, len(bars) * _BAR + 4
    share = ", ".join(f"{value:.0%}" for value in phase["shares"].values())
    less = ", less is better" if phase["better"] == "less" else ""
    lowest = title_of(phase["lowest"]) if phase["lowest"] else ""
    of = f" · {share} of {lowest}" if share else ""
    caption = f"{escape(phase['title'])} <span>{escape(phase['unit'] + less + of)}</span>"
    return (
        f'<figure id="{phase["name"]}"><figcaption>{caption}</figcaption>'
        f'<svg viewBox="0 0 {width} {height}" role=img>{rows}</svg></figure>'
    )


def _scale(phase: Document) -> float:
    """The value at the right edge.  What is far above (a checksum in memory, the plain disk's
    cache) is cut off with an arrow: it must not flatten all others."""
    main = list(phase["targets"].values())
    if phase["lowest"]:
        main.append(phase["limits"][phase["lowest"]])
    most: float = max(each["high"] for each in main)
    near = [each["high"] for each in phase["limits"].values() if each["high"] <= _NEAR * most]
    return 1.05 * max([most, *near]) or 1.0


def _bar(number: int, name: str, found: Document, kind: str, scale: float) -> str:
    top, middle = number * _BAR + 2, number * _BAR + _BAR // 2
    length, low, high = (min(1.0, found[key] / scale) * _WIDTH for key in ("median", "low", "high"))
    text = human(found["median"]) + (" →" if found["median"] > scale else "")
    label = name if len(name) <= 32 else "…" + name[-31:]
    return (
        f'<text x="{_LABEL - 8}" y="{top + 12}" text-anchor="end">{escape(label)}</text>'
        f'<rect class="{kind}" x="{_LABEL}" y="{top}" width="{length:.1f}" height="{_BAR - 4}"/>'
        f'<line class="reach" x1="{_LABEL + low:.1f}" x2="{_LABEL + high:.1f}" '
        f'y1="{middle}" y2="{middle}"/>'
        f'<text class="value" x="{_LABEL + max(length, high) + 6:.1f}" y="{top + 12}">'
        f"{escape(text)}</text>"
    )


def _ratios(document: Document) -> str:
    lines = []
    for each in document["ratios"]:
        values = {**each["targets"], **{title_of(n): v for n, v in each["beside"].items()}}
        text = ", ".join(f"{escape(name)} {value:.2f}" for name, value in values.items())
        lines.append(f"<li>{escape(each['title'])}: {text}</li>")
    return f"<h2>Quotients</h2>\n<ul>{''.join(lines)}</ul>\n" if lines else ""
