"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """Bad input: a config, path, image, label, checkpoint or mesh.

    The message is one paragraph: what is wrong, where (file, field, line), what to do. Commands print it
    without a traceback and exit with code 1.
    """
