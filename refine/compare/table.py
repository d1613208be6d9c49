"""The comparison's tables as text and JSON. Owns how cells become rows with their spread."""

from collections.abc import Sequence
from typing import Any

from refine.compare.cells import Cell

_WIDTH = 18


def table(title: str, cells: Sequence[Cell], columns: Sequence[str]) -> str:
    """Returns a line per row and flag count: mean over seeds (least to most), in percent."""
    rows = _rows(cells)
    label = max(len(_label(*row)) for row in rows)
    heads = _wrapped_heads(columns)
    lines = ["", title, "-" * len(title)]
    lines += [" " * label + "".join(f"{part:>{_WIDTH}}" for part in head) for head in heads]
    for row, spread in rows.items():
        cells_ = (_share([cell.figures[column] for cell in spread]) for column in columns)
        lines.append(f"{_label(*row):<{label}}" + "".join(f"{share:>{_WIDTH}}" for share in cells_))
    return "\n".join(line.rstrip() for line in lines)


def as_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns each row with mean, minimum and maximum of every column over its seeds."""
    return [
        {
            "row": row,
            "flags": flags,
            "seeds": [cell.seed for cell in spreads],
            "figures": {
                column: _spread([cell.figures[column] for cell in spreads])
                for column in spreads[0].figures
            },
        }
        for (row, flags), spreads in _rows(cells).items()
    ]


def _rows(cells: Sequence[Cell]) -> dict[tuple[str, int], list[Cell]]:
    rows: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.row, cell.flags), []).append(cell)
    return rows


def _label(row: str, flags: int) -> str:
    return f"{flags:>4}  {row}"


def _share(shares: Sequence[float]) -> str:
    spread = _spread(shares)
    return f"{100 * spread['mean']:.1f} ({100 * spread['least']:.0f} to {100 * spread['most']:.0f})"


def _spread(shares: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(shares) / len(shares), "least": min(shares), "most": max(shares)}


def _wrapped_heads(columns: Sequence[str]) -> list[list[str]]:
    """Returns column names in two lines, split at the comma."""
    parts = [column.partition(", ") for column in columns]
    return [[first for first, _, _ in parts], [rest for _, _, rest in parts]]
