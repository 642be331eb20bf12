"""Fonts for names in any script: Pillow's own, or one of the system that has the characters."""

import functools

from PIL import ImageFont

SIZE = 12  # pixels
SYSTEM_FONTS = (  # of wide coverage, as Linux, macOS and Windows have them; Pillow searches the usual folders
    *("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-zenhei.ttc", "unifont.otf"),
    *("NotoSans-Regular.ttf", "FreeSans.ttf", "Arial Unicode.ttf", "PingFang.ttc", "AppleSDGothicNeo.ttc"),
    *("arialuni.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "seguisym.ttf", "Nirmala.ttf"),
)
ABSENT = "\ufffe"  # no font has it, and draws what it draws for missing glyphs

Font = ImageFont.FreeTypeFont


@functools.cache
def fonts() -> tuple[Font, ...]:
    """Pillow's own font, then those of SYSTEM_FONTS that are installed."""
    found = [ImageFont.load_default(SIZE)]
    for name in SYSTEM_FONTS:
        try:
            found.append(ImageFont.truetype(name, SIZE))
        except OSError:
            continue
    return tuple(font for font in found if isinstance(font, ImageFont.FreeTypeFont))


@functools.cache
def has_glyph(font: Font, character: str) -> bool:
    """Whether a font can draw a character."""
    return bytes(font.getmask(character)) != bytes(font.getmask(ABSENT)) or character.isspace()


@functools.lru_cache(4096)
def choose(text: str) -> tuple[str, Font]:
    """`text`, and the first font that has all its characters; if there is none, those that it lacks are escaped."""
    for font in fonts():
        if all(has_glyph(font, character) for character in text):
            return text, font
    best = max(fonts(), key=lambda font: sum(has_glyph(font, character) for character in text))
    escaped = (c if has_glyph(best, c) else ascii(c)[1:-1] for c in text)
    return "".join(escaped), best


def width(text: str) -> int:
    """Of a text in its font, in pixels."""
    shown, font = choose(text)
    return round(font.getlength(shown)) + 1
