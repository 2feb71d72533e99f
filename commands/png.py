"""A figure as the bytes of a PNG, the same for the same figure."""

import io
import warnings

from matplotlib.figure import Figure


def png(figure: Figure) -> bytes:
    """Render a figure. A character that the font lacks becomes a box."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
