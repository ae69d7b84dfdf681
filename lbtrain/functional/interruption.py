"""The wish to stop a long measurement early, and to keep what it has."""


class Interrupted(Exception):  # noqa: N818 - a wish of the user, not an error
    """A product, gradient or value was not made, because the user asked to stop; all ranks raise it together.

    Routines that can use what they have return it, marked as interrupted; the others let this pass to their caller.
    """
