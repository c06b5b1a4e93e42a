"""The tokens that are no text, first in every shared vocabulary.  Standard library only."""

from typing import Final

PAD: Final = 0
"""Fills sentences up: nothing attends to it in a source, and it counts for nothing in a target."""
BEGIN: Final = 1
"""What the decoder reads first."""
END: Final = 2
"""Ends every sentence."""
SPECIAL_TOKENS: Final = ("<pad>", "<s>", "</s>")
"""Their names by id."""
