"""Where sentences end. Owns the cut of an unfinished text at its last whole sentence. Knows no
language: it looks for punctuation and line ends.
"""

import re

_END = re.compile(r"[。！？]|(?<!\d)[.!?…][\"'”’)\]]*(?=\s|$)|\n")


def whole_sentences(text: str) -> str:
    """Returns the text up to the end of its last whole sentence or line, empty if there is none."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]].strip() if ends else ""
