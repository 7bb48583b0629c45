"""Text for people and programs outside: names as bytes, and lines of printable ASCII.

A name or path is text by ``surrogateescape`` inside pmxcfs and bytes for everybody else. What goes
into a log line or a JSON string is escaped to printable ASCII.
"""


def to_text(raw: bytes) -> str:
    """Decode a name or path; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Encode a name or path, the inverse of ``to_text``."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Escape *text* to printable ASCII that can stand between quotes in JSON."""
    if text.isascii() and text.isprintable() and '"' not in text:
        return text
    return "".join(map(printable_character, text))


def printable_character(character: str) -> str:
    """Escape one character likewise; a character that can't be shown becomes ``?`` or nothing."""
    code = ord(character)
    if character == '"':
        return '\\"'
    if code < 32 or code == 127:
        return f"#{code:03d}"
    if code < 127:
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8
        return "?"
    return f"\\u{code:04x}" if code < 0x10000 else ""


def escape(text: str) -> str:
    """Return *text* as printable ASCII, in the way of the cluster log; quotes stay as they are."""
    return '"'.join(printable(part) for part in text.split('"'))
