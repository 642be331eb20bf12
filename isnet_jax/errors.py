"""The one exception for mistakes a user can mend."""

import contextlib


class UserError(Exception):
    """Bad input: a config, path, image, label, checkpoint or mesh.

    The message is one paragraph: what is wrong, where (file, field, line), what to do. Commands print it
    without a traceback and exit with `code`.
    """

    code = 1


def printable(text):
    """A text with its control characters escaped: a name of a file may try to command the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def mended_by_user(what, flag, goes_on, memory):
    """Makes UserErrors of full disks and full devices inside.

    what: whose work it is, at the start of a sentence; flag: which one says where it writes; goes_on: from where;
    memory: what to do where the device has too little.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} stopped because a file cannot be read or written: {error}. Make room, or choose "
            f"another {flag}; the same command goes on {goes_on}."
        ) from error
    except RuntimeError as error:  # JAX's is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"The device has too little memory for this config: {memory} ({str(error).splitlines()[0][:200]})."
        ) from None


def mismatches(found, wanted, optional=()):
    """What two {name: shape} differ in, all of it in one text; "" if they agree or only lack `optional` names."""
    wrong = [
        f"{name} {found[name]} instead of {wanted[name]}"
        for name in sorted(set(found) & set(wanted))
        if found[name] != wanted[name]
    ]
    faults = {
        "missing": sorted(set(wanted) - set(found) - set(optional)),
        "not in the network": sorted(set(found) - set(wanted)),
        "of another shape": wrong,
    }
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
