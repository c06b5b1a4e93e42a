"""How numbers are said in sentences for people."""


def counted(number: int, noun: str, one: str = "", many: str = "") -> str:
    """`1 node`, `12,500 nodes`; with verbs, `counted(1, "node", "is", "are")`: `1 node is`, `2 nodes are`."""
    verb = one if number == 1 else many
    return f"{number:,} {noun}{'' if number == 1 else 's'}" + (f" {verb}" if verb else "")
