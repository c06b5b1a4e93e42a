"""Not fitted yet."""

SURFACE = """\
none|none 0 0 0 0 0 0 0 0 0"""
