"""Pages from templates of this package: HTML, or of another markup."""

from collections.abc import Callable
from typing import Any

import jinja2


def environment(package: str, escape: Callable[[Any], str] | None = None) -> jinja2.Environment:
    """Loads the templates of `package`. Values are escaped, and an undefined name is an error.

    escape: for another markup than HTML, what gives the text of every value.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=escape is None,
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def as_ascii(page: str) -> str:
    """The page with character references for all but ASCII, so that no encoding can garble it."""
    return page.encode("ascii", "xmlcharrefreplace").decode()
