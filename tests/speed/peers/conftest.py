"""Other libraries, whose own warnings are not ours."""

import vision  # noqa: F401  # its operators are declared
