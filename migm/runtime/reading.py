"""Read files that people made without loss: texts, images, and the list of a folder's files.

Texts are UTF-8, or UTF-16 or UTF-32 if a byte order mark says so, with any line ends. Another encoding cannot be
recognised from the bytes: it is refused by line and byte, never guessed.
"""

import codecs
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from migm.runtime.errors import UserError

MARK = "\ufeff"  # the byte order mark, decoded
ENCODINGS = (  # UTF-32 first: its byte order mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Files that systems create unasked, in lower case; macOS also creates `._<name>` beside every <name>.
UNASKED = {"__macosx", ".ds_store", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes"}
UNASKED |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"}


def unasked(name: str) -> bool:
    """Return whether a path in a folder or archive is a system file, such as `._a.png` or `Thumbs.db`."""
    return any(part in UNASKED or part.startswith("._") for part in name.lower().split("/"))


def files_of(folder: Path, *endings: str, deep: bool = False) -> list[Path]:
    """List a folder's files in the order of names, without system files; with `endings`, only names that end so.

    Endings are given in lower case and match any case. `deep` also lists the folders inside.
    """
    return sorted(
        path
        for path in (folder.rglob("*") if deep else folder.glob("*"))
        if (not endings or path.name.lower().endswith(endings)) and not unasked(path.relative_to(folder).as_posix())
    )


def read_text(path: Path, key: str = "") -> str:
    """Read a text with `\\n` at the ends of lines and no byte order mark; refusals begin with `key` and the path."""
    origin = f"{key}={path}" if key else str(path)
    text = decoded(path.read_bytes(), origin)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(
            f"{origin}, line {line} holds a NUL character: it is no text, or UTF-16 without a byte order mark; "
            "save it as UTF-8"
        )
    return text


def decoded(data: bytes, origin: object, errors: str = "strict") -> str:
    """Decode the bytes of a text file, NUL characters included; `errors` as in `bytes.decode`."""
    encoding = next((name for mark, name in ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(data, error, origin, encoding)) from error
    # Joined files contain byte order marks inside as well.
    return _plain(text).removeprefix(MARK).replace(f"\n{MARK}", "\n")


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _undecodable(data: bytes, error: UnicodeDecodeError, origin: object, encoding: str) -> str:
    line = _plain(data[: error.start].decode(encoding, "replace")).count("\n") + 1
    where = f"{origin}, line {line}: byte {error.start + 1} of the file, 0x{data[error.start]:02x},"
    if encoding != "utf-8":
        return f"{where} is not {encoding.upper()}, as its byte order mark says it is; save it as UTF-8"
    return f"{where} is not UTF-8; save it as UTF-8 (if it comes from Windows: iconv -f WINDOWS-1252 -t UTF-8)"


def read_picture(file: Path | BinaryIO, origin: object, mode: str = "RGB") -> Image.Image:
    """Read an image file upright, with 8 bits a channel; an animation gives its first frame.

    With `mode` RGB transparent pixels become white, like paper; with L, for masks, they become black, since only what
    is painted counts as white. A file that cannot be read is refused in a line that begins with `origin`.
    """
    try:
        with Image.open(file) as opened:
            kind = opened.format
            return _flat(_eight_bits(ImageOps.exif_transpose(opened), kind), mode)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise any kind of exception on damaged bytes
        # The message of this exception may contain the address of an object.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "damaged, or of a format that Pillow does not know" if unknown else " ".join(str(error).split())
        raise UserError(f"{origin} cannot be read as an image ({reason or type(error).__name__})") from error


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """Map an image of 16 bits, or of numbers from 0 to 1, to 0...255; return other images unchanged."""
    if not image.mode.startswith(("I", "F")):
        return image
    values, largest = np.asarray(image).astype(np.float64), 1.0 if image.mode == "F" else 65535.0
    # PNG and PNM have at most 16 bits, though Pillow may keep them in 32; in other formats the range is unknown.
    whole = image.mode != "I" or kind in ("PNG", "PPM")
    if not (whole and values.min() >= 0 and values.max() <= largest):
        raise ValueError(f"numbers from {values.min():g} to {values.max():g}; save it with 8 or 16 bits a channel")
    flat = Image.fromarray(np.rint(values * (255 / largest)).astype(np.uint8))
    if isinstance(clear := image.info.get("transparency"), int):
        flat.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return flat


def _flat(image: Image.Image, mode: str) -> Image.Image:
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() != (255, 255):
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white" if mode == "RGB" else "black"), layer)
    return image.convert(mode)
