"""Conversion of names between ``str`` and bytes, and escaping to printable ASCII.

Names and paths are ``str`` decoded with ``surrogateescape`` inside pmxcfs, and arbitrary bytes
outside. Text for a log line or a JSON string is escaped to printable ASCII.
Contract: docs/spec/status.md, "Cluster log".
"""


def to_text(raw: bytes) -> str:
    """Decode a name or path; bytes that are not UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Encode a name or path, the inverse of ``to_text``."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """Escape *text* to printable ASCII that is valid between double quotes in JSON."""
    if text.isascii() and text.isprintable() and '"' not in text:
        return text
    return "".join(map(printable_character, text))


def printable_character(character: str) -> str:
    """Escape one character as ``printable`` does.

    A byte that is not UTF-8 becomes ``?``; a character above U+FFFF is dropped.
    """
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
    """Escape *text* to printable ASCII for a log line; double quotes are not escaped."""
    return '"'.join(printable(part) for part in text.split('"'))
