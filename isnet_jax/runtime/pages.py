"""HTML pages from templates of this package."""

import jinja2


def environment(package: str) -> jinja2.Environment:
    """Loads the templates of `package`. Values are escaped, and an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_ascii(page: str) -> str:
    """The page with character references for all but ASCII, so that no encoding can garble it."""
    return page.encode("ascii", "xmlcharrefreplace").decode()
