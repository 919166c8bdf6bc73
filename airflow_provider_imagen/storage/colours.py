"""
Convert pixels between modes, and keep the colour profile consistent with them.

A profile is for one colour space (grey, RGB, CMYK …) and misleads viewers if the pixels are in another. So it is kept
only where it fits. If the colour space has to change, the pixels are converted to sRGB, which needs no profile.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_COLOUR_SPACE: Final = slice(16, 20)  # "data colour space" in the header of a profile (ICC.1:2022, 7.2)
_OTHER_SPACES: Final = {"CMYK": b"CMYK", "LAB": b"Lab "}


def change_mode(image: PillowImage, mode: str, options: dict[str, Any], notes: list[str]) -> PillowImage:
    """
    Return the image converted to a Pillow mode.

    :param mode: ``L``, ``LA``, ``RGB`` or ``RGBA``, or the image's own mode. Transparent pixels become white in a mode
        without transparency
    :param options: encoder options; ``icc_profile`` is set to ``None`` if it does not fit the new pixels
    :param notes: a sentence is appended if a profile is dropped without being applied
    """
    profile: bytes | None = options.get("icc_profile")
    space = _colour_space_of(image.mode)
    if profile and profile[_COLOUR_SPACE] != space:
        options["icc_profile"] = profile = None
        notes.append("The colour profile was dropped: it is for a different colour space.")
    if image.mode == mode:
        return image
    image = to_eight_bits(image)
    if profile and _colour_space_of(mode) != space:
        options["icc_profile"] = None
        image = _to_srgb(image, profile, notes)
    if image.has_transparency_data and mode in ("L", "RGB"):
        return _on_white(image.convert(mode + "A"), mode)
    return image if image.mode == mode else image.convert(mode)


def to_eight_bits(image: PillowImage) -> PillowImage:
    """Return 16-bit grey, which few operations accept, as 8-bit grey; return any other image unchanged."""
    if not image.mode.startswith("I"):
        return image
    return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")


def is_grey(mode: str) -> bool:
    """Return whether a mode is greyscale."""
    return _colour_space_of(mode) == b"GRAY"


def _colour_space_of(mode: str) -> bytes:
    if mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"):
        return b"GRAY"
    return _OTHER_SPACES.get(mode, b"RGB ")


def _on_white(layer: PillowImage, mode: str) -> PillowImage:
    from PIL import Image

    image = Image.new(mode, layer.size, "white")
    image.paste(layer, mask=layer.getchannel("A"))
    return image


def _to_srgb(image: PillowImage, profile: bytes, notes: list[str]) -> PillowImage:
    """Return the image as RGB or RGBA, converted through the profile if it can be applied."""
    from PIL import ImageCms

    mode = "L" if is_grey(image.mode) else image.mode
    alpha = image.convert("LA").getchannel("A") if mode == "L" and image.has_transparency_data else None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        converted = ImageCms.profileToProfile(
            image if image.mode == mode else image.convert(mode),
            source,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError) as error:
        notes.append(f"The colour profile was dropped: it cannot be applied ({error}).")
        return image.convert("RGB" if alpha is None else "RGBA")
    if converted is None:  # only for in-place conversions
        return image.convert("RGB")
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
