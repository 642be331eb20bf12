"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """Bad input: a config, path, image, label, checkpoint or mesh.

    The message is one paragraph: what is wrong, where (file, field, line), what to do. Commands print it
    without a traceback and exit with code 1.
    """


def mismatches(found, wanted, optional=()):
    """What two {name: shape} differ in, all of it in one text; "" if they agree or only lack `optional` names."""
    wrong = [f"{name} {found[name]} instead of {wanted[name]}" for name in sorted(set(found) & set(wanted))
             if found[name] != wanted[name]]
    faults = {"missing": sorted(set(wanted) - set(found) - set(optional)),
              "not in the network": sorted(set(found) - set(wanted)), "of another shape": wrong}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in faults.items() if names)
