"""The colours of figures and page, each for light and for dark."""

# Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by all common kinds of colour vision; light, dark.
# The baseline is the first: ink, not a colour.
SERIES = (
    ("#3d444d", "#c9d1d9"),
    ("#0072b2", "#4db2f0"),
    ("#d55e00", "#ff9248"),
    ("#009e73", "#3ddbac"),
    ("#b0578d", "#ea9fca"),
    ("#a97a00", "#f2c14e"),
    ("#5b4db1", "#a99cf5"),
    ("#7c4a21", "#c9a27a"),
    ("#0a8ea0", "#6fd8e6"),
    ("#c01f4f", "#ff7d9c"),
    ("#5d7a00", "#b3d44c"),
    ("#8a2be2", "#d08bff"),
)
MARKERS = "osD^vPX*h<>p"  # one each
INK, MUTED, GRID, BAND = ("#1f2329", "#e6e8eb"), ("#60676f", "#9aa3ad"), ("#e3e5e8", "#30363d"), ("#f1f3f5", "#20262d")
PAGE = ("#fefefe", "#14181d")
VARIABLES = {"page": PAGE, "ink": INK, "muted": MUTED, "grid": GRID, "band": BAND} | {
    f"s{i}": c for i, c in enumerate(SERIES)
}


def css_variables(dark: bool) -> str:
    """The figures' colours as CSS declarations."""
    return " ".join(f"--{name}: {colours[dark]};" for name, colours in VARIABLES.items())


def themed(svg: str) -> str:
    """SVG drawn in the light colours, with those replaced by the CSS variables of the same names."""
    for name, colours in VARIABLES.items():
        svg = svg.replace(colours[0], f"var(--{name})")
    return svg
