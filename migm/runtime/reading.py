"""Files that people made, read without loss: one reader for texts, one for images, one list of a folder's files.

Texts are UTF-8, or UTF-16 and UTF-32 where a byte order mark says so, with any line ends. What else a file may be
encoded in cannot be told from its bytes: it is refused by line and byte, never guessed.
"""

import codecs
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from migm.runtime.errors import UserError

MARK = "\ufeff"  # the byte order mark, decoded
ENCODINGS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What systems put beside files without being asked, in lower case; macOS also `._<name>` beside every <name>.
UNASKED = {"__macosx", ".ds_store", ".appledouble", ".fseventsd", ".spotlight-v100", ".trashes"}
UNASKED |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"}


def unasked(name: str) -> bool:
    """Whether a path inside a folder or an archive is one that a system put there, such as `._a.png` or `Thumbs.db`."""
    return any(part in UNASKED or part.startswith("._") for part in name.lower().split("/"))


def files_of(folder: Path, *endings: str, deep: bool = False) -> list[Path]:
    """What a folder holds, in the order of names, without what systems put there; with `endings` these alone.

    Endings are in lower case and match in any. `deep` looks through the folders inside too.
    """
    return sorted(
        path
        for path in (folder.rglob("*") if deep else folder.glob("*"))
        if (not endings or path.name.lower().endswith(endings)) and not unasked(path.relative_to(folder).as_posix())
    )


def read_text(path: Path, key: str = "") -> str:
    """A file's text with `\\n` at the ends of lines and no byte order mark; refusals begin with `key` and the path."""
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
    """The text of a file's bytes, NUL characters included; `errors` as `bytes.decode` takes it."""
    encoding = next((name for mark, name in ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(data, error, origin, encoding)) from error
    return _plain(text).removeprefix(MARK).replace(f"\n{MARK}", "\n")  # files that were joined have it inside too


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _undecodable(data: bytes, error: UnicodeDecodeError, origin: object, encoding: str) -> str:
    line = _plain(data[: error.start].decode(encoding, "replace")).count("\n") + 1
    where = f"{origin}, line {line}: byte {error.start + 1} of the file, 0x{data[error.start]:02x},"
    if encoding != "utf-8":
        return f"{where} is not {encoding.upper()}, as its byte order mark says it is; save it as UTF-8"
    return f"{where} is not UTF-8; save it as UTF-8 (if it comes from Windows: iconv -f WINDOWS-1252 -t UTF-8)"


def read_picture(file: Path | BinaryIO, origin: object, mode: str = "RGB") -> Image.Image:
    """An image file as its maker sees it: upright, 8 bits a channel, of an animation the first frame.

    `mode` is RGB, where a transparent pixel shows the white of paper, or L for a mask, where it shows black: what
    is not painted is not white. What cannot be read is refused in a line that begins with `origin`.
    """
    try:
        with Image.open(file) as opened:
            kind = opened.format
            return _flat(_eight_bits(ImageOps.exif_transpose(opened), kind), mode)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        unknown = isinstance(error, UnidentifiedImageError)  # whose words may be the address of an object
        reason = "damaged, or of a format that Pillow does not know" if unknown else " ".join(str(error).split())
        raise UserError(f"{origin} cannot be read as an image ({reason or type(error).__name__})") from error


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """One of 16 bits, or of numbers from 0 to 1, with its whole range as 0 to 255; others as they are."""
    if not image.mode.startswith(("I", "F")):
        return image
    values, largest = np.asarray(image).astype(np.float64), 1.0 if image.mode == "F" else 65535.0
    # PNG and PNM have at most 16 bits, though Pillow may keep them in 32; elsewhere nothing tells the range.
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
