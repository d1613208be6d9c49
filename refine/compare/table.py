"""The comparison's tables as text and JSON. Owns how cells become rows with their spread."""

from collections.abc import Sequence
from typing import Any

from refine.compare.cells import Cell

_WIDTH = 18


def table(title: str, cells: Sequence[Cell], columns: Sequence[str]) -> str:
    """One line per row and number of flags: mean over seeds and (least to most), in percent."""
    rows = _rows(cells)
    label = max(len(_label(*row)) for row in rows)
    heads = _wrapped_heads(columns)
    lines = ["", title, "-" * len(title)]
    lines += [" " * label + "".join(f"{part:>{_WIDTH}}" for part in head) for head in heads]
    for row, found in rows.items():
        shown = (_share([cell.figures[column] for cell in found]) for column in columns)
        lines.append(f"{_label(*row):<{label}}" + "".join(f"{share:>{_WIDTH}}" for share in shown))
    return "\n".join(line.rstrip() for line in lines)


def as_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Each row with mean, least and most of every column over its seeds."""
    return [
        {
            "row": row,
            "flags": flags,
            "seeds": [cell.seed for cell in found],
            "figures": {
                column: _spread([cell.figures[column] for cell in found])
                for column in found[0].figures
            },
        }
        for (row, flags), found in _rows(cells).items()
    ]


def _rows(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.row, cell.flags), []).append(cell)
    return rows


def _label(row: str, flags: int) -> str:
    return f"{flags:>4}  {row}"


def _share(shares: Sequence[float]) -> str:
    found = _spread(shares)
    return f"{100 * found['mean']:.1f} ({100 * found['least']:.0f} to {100 * found['most']:.0f})"


def _spread(shares: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(shares) / len(shares), "least": min(shares), "most": max(shares)}


def _wrapped_heads(columns: Sequence[str]) -> list[list[str]]:
    """Column names over two lines, cut at the comma."""
    parts = [column.partition(", ") for column in columns]
    return [[first for first, _, _ in parts], [rest for _, _, rest in parts]]
