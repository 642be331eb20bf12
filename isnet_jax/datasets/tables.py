"""Long tables of names and colours, written compactly."""


def names(text):
    """Splits names at commas and line ends."""
    return tuple(name.strip() for name in text.replace("\n", " ").strip(" ,").split(","))


def colors(text):
    """Returns [r, g, b] triples of hexadecimal colours, separated by white space."""
    return tuple(tuple(bytes.fromhex(color)) for color in text.split())


def distinct_colors(indices):
    """Returns the colours of Pascal VOC's map: the bits of an index go to r, g and b in turn, the lowest to the top."""
    return tuple(
        tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3))
        for index in indices
    )
