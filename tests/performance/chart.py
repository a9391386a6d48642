"""Bar charts as SVG, written by hand: a bar for each median, a whisker from least to most."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 720
LEFT = 230
"""Where bars begin at least; the names stand before."""

LETTER = 7.2
"""Room for a letter of a name: the mean of what browsers take by default."""

RIGHT = 130
"""Room for the figure behind the longest bar."""

ROW = 34
BAR = 20
TOP = 62

STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2933 }
.title { font-weight: 600 }
.small { font-size: 12px; fill: #52606d }
.paper { fill: #ffffff }
.bar { fill: #9aa5b1 }
.own { fill: #0b7285 }
.whisker { stroke: #1f2933; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e7eb }
  .small { fill: #9aa5b1 }
  .paper { fill: #14191f }
  .bar { fill: #616e7c }
  .own { fill: #22b8cf }
  .whisker { stroke: #e4e7eb }
}
"""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    value: float
    low: float
    high: float
    note: str = ""
    own: bool = False
    """It is ours, and has another colour."""


def number(value: float) -> str:
    """Write a figure with three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _bar(bar: Bar, top: int, left: int, scale: float) -> list[str]:
    middle = top + BAR / 2
    low, high = left + bar.low * scale, left + bar.high * scale
    text = number(bar.value) + (f"  ({bar.note})" if bar.note else "")
    return [
        f'<text x="{left - 10}" y="{middle + 5}" text-anchor="end">{escape(bar.name)}</text>',
        (
            f'<rect x="{left}" y="{top}" width="{max(bar.value * scale, 1):.1f}" height="{BAR}" '
            f'rx="2" class="{"own" if bar.own else "bar"}"/>'
        ),
        (
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} '
            f'{middle - 4}v8" class="whisker"/>'
        ),
        f'<text x="{high + 8:.1f}" y="{middle + 5}">{escape(text)}</text>',
    ]


def bar_chart(title: str, subtitle: str, bars: list[Bar]) -> str:
    """Draw horizontal bars on one linear scale that begins at zero: shorter is better."""
    height = TOP + ROW * len(bars) + 12
    left = max(LEFT, round(LETTER * max(len(bar.name) for bar in bars)) + 20)
    scale = (WIDTH - left - RIGHT) / max(bar.high for bar in bars)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">'
        ),
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{height}" rx="6"/>',
        f'<text x="16" y="26" class="title">{escape(title)}</text>',
        f'<text x="16" y="45" class="small">{escape(subtitle)}</text>',
    ]
    for row, bar in enumerate(bars):
        lines += _bar(bar, TOP + ROW * row, left, scale)
    return "\n".join([*lines, "</svg>", ""])
