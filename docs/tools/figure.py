"""Draws docs/accuracy_kept.svg of docs/accuracy_kept.csv: `python docs/tools/figure.py`."""

import csv
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#000000")
TITLES = {"parameters": "parameters kept, %", "time": "measured time, % of the dense network's"}
RANGES = {"parameters": (0, 100), "time": (50, 110)}
LOWEST, HIGHEST = 40, 105
WIDTH, HEIGHT, LEFT, TOP = 330, 240, 60, 30
LEGEND = 20


def figure(rows: list[dict[str, str]]) -> str:
    """Two panels with their legends below, accuracy as a share of the dense network's."""
    names = list(dict.fromkeys(row["network"] for row in rows))
    panels = {panel: [row for row in rows if row["panel"] == panel] for panel in TITLES}
    drawn = {panel: dict.fromkeys(row["network"] for row in own) for panel, own in panels.items()}
    total = TOP + HEIGHT + 52 + LEGEND * max(map(len, drawn.values()))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * (WIDTH + LEFT) + 20} {total}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (panel, own) in enumerate(panels.items()):
        left = LEFT + number * (WIDTH + LEFT)
        lines += _panel(own, panel, left, names)
        for place, name in enumerate(drawn[panel]):
            y, colour = TOP + HEIGHT + 60 + LEGEND * place, COLOURS[names.index(name)]
            lines.append(f'<circle cx="{left}" cy="{y - 4}" r="4" fill="{colour}"/>')
            lines.append(f'<text x="{left + 10}" y="{y}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _panel(rows: list[dict[str, str]], panel: str, left: int, names: list[str]) -> list[str]:
    low, high = RANGES[panel]

    def place(share: float, kept: float) -> tuple[float, float]:
        height = (min(max(kept, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        return left + WIDTH * (share - low) / (high - low), TOP + HEIGHT * (1 - height)

    lines = []
    for kept in range(LOWEST, HIGHEST, 20):
        x, y = place(low, kept)
        lines.append(f'<path d="M{x:.1f} {y:.1f}h{WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{kept}</text>')
    for share in range(low, high + 1, 20):
        x, y = place(share, LOWEST)
        lines.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{share}</text>')
    middle = left + WIDTH / 2
    lines.append(
        f'<text x="{middle}" y="{TOP + HEIGHT + 36}" text-anchor="middle">{TITLES[panel]}</text>'
    )
    if panel == "parameters":
        lines.append(f'<text x="{left - 40}" y="18">accuracy, % of the dense network\'s</text>')
    for network in dict.fromkeys(row["network"] for row in rows):
        points = [
            place(float(row["share"]), 100 * float(row["accuracy"]) / float(row["dense"]))
            for row in rows
            # What falls out of the figure is told in its caption.
            if row["network"] == network
            and 100 * float(row["accuracy"]) > LOWEST * float(row["dense"])
        ]
        colour = COLOURS[names.index(network)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    return lines


def main() -> None:
    """Read the file of figures and write the drawing beside it."""
    with (DOCS / "accuracy_kept.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (DOCS / "accuracy_kept.svg").write_text(figure(rows), "utf-8")


if __name__ == "__main__":
    main()
