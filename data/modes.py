"""Pictures of all kinds become red, green and blue, as a viewer would show them on a white page."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to RGB with 8 bits a channel.

    What is transparent shows white. Grey values of 16 bits are divided by 257, so that the range stays whole.

    Raises:
        ValueError: If nothing says which of its values are black and white.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey values from 0 to 65,535, in integers of 16 or 32 bits, become 8 bits."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not from 0 to 65,535, and nothing says which are black and white")
    grey = (values / 257).round().astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)
