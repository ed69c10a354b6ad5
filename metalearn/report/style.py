"""What all pictures share: colours, axis style, and saving without any state outside the figure.

Colours are Okabe and Ito's, told apart by colour-blind readers too; meaning never hangs on colour alone.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, GREEN, RED, GREY = "#0072B2", "#009E73", "#D55E00", "#666666"


def style(axis: Axes, metric: str, unit: str = "") -> None:
    """Label the y axis with a metric and its unit, and take away what carries no information."""
    axis.set_ylabel(metric.replace("_", " ") + (f" ({unit})" if unit else ""))
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Write the PNG, making its folder; pyplot is not involved, so nothing is left behind in the process."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
