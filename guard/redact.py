"""Takes personal data out of texts: e-mail addresses, phone numbers, payment card numbers, IBANs
and IP addresses. Owns what counts as one and the names, Presidio's, that stand in their place.

Does not find names, postal addresses, or what is encoded or spelled out; recorder.py says when.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from phonenumbers import SUPPORTED_REGIONS, PhoneNumberMatcher
from stdnum import iban, luhn

# Only scripts that put spaces between words: of others a whole sentence would seem an address.
_LETTERS = "A-Za-z\u00c0-\u0dff"
_LOCAL = f"{_LETTERS}0-9_.%+&'-"
_EMAIL = re.compile(
    # A sign before the first letter is the sentence's own, such as a quote.
    rf"(?<![{_LOCAL}])[.%+&'-]*+([{_LETTERS}0-9_][{_LOCAL}]*+"
    rf"@(?:[{_LETTERS}0-9-]+\.)+[{_LETTERS}][{_LETTERS}0-9-]*[{_LETTERS}0-9])"
)
_CARDS = [
    # A decimal fraction is no card. A lookahead, so that a number may begin within a wrong one.
    re.compile(rf"(?<!\d)(?<!\d[.,])(?=({form})(?!\d))", re.ASCII)
    for form in (
        r"[2-9]\d{12,18}",
        r"[2-9]\d{3}([ -])\d{4}\2\d{4}\2\d{1,4}",
        r"[2-9]\d{3}([ -])\d{4}\2\d{4}\2\d{4}\2\d{1,3}",
        r"3\d{3}([ -])\d{6}\2\d{4,5}",
    )
]
_IBAN = re.compile(r"(?<!\w)(?=([A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}))", re.ASCII | re.IGNORECASE)
_IPV4 = re.compile(r"(?<!\w)(?<!\d\.)\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)(?!\w)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9a-f]*:[0-9a-f]*:)[0-9a-f:.]++(?!\w)", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True)
class _Finding:
    """Something personal in a text, from `start` to `end`."""

    start: int
    end: int
    name: str


class Redactor:
    """phone_region: the country whose phone numbers are found without a country code; those with
    one always are."""

    def __init__(self, phone_region: str) -> None:
        self._region = check_region(phone_region)

    def redact(self, text: str) -> str:
        """The text with a name in place of everything personal."""
        return self.redact_at(text, 0)[0]

    def redact_at(self, text: str, position: int) -> tuple[str, int]:
        """The same, and where `position` is in it: after the name of what it was within."""
        # What is left may read differently. It ends: each turn leaves fewer digits, @ and colons.
        while findings := _apart(self._findings(text)):
            text, position = _replaced(text, findings, position)
        return text, position

    def _findings(self, text: str) -> Iterator[_Finding]:
        for found in _EMAIL.finditer(text):
            yield _Finding(*found.span(1), "EMAIL_ADDRESS")
        for start, end in _cards(text):
            yield _Finding(start, end, "CREDIT_CARD")
        for start, end in _ibans(text):
            yield _Finding(start, end, "IBAN_CODE")
        for start, end in _addresses(text):
            yield _Finding(start, end, "IP_ADDRESS")
        # Left to itself the library gives up in texts with many numbers.
        for match in PhoneNumberMatcher(text, self._region, max_tries=sys.maxsize):
            yield _Finding(match.start, match.end, "PHONE_NUMBER")


def check_region(region: str) -> str:
    """The region; raises ValueError unless it is a country whose phone numbers are known."""
    if region not in SUPPORTED_REGIONS:
        raise ValueError("no country's code; write two capital letters such as US, GB or DE")
    return region


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _CARDS:
        for found in pattern.finditer(text):
            if luhn.is_valid(re.sub("[ -]", "", found[1])):
                yield found.span(1)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for found in _IBAN.finditer(text):
        # Words that follow look like more groups of it.
        ends = [word.end() for word in re.finditer("[^ -]+", found[1])]
        end = next((end for end in ends if iban.is_valid(found[1][:end])), None)
        if end is not None:
            yield found.start(1), found.start(1) + end


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern, kind in ((_IPV4, IPv4Address), (_IPV6, IPv6Address)):
        for found in pattern.finditer(text):
            # The sentence may go on with a colon, or end.
            for written in (found[0], found[0].rstrip(".:"), found[0].rstrip(".")):
                if _is_address(written, kind):
                    yield found.start(), found.start() + len(written)
                    break


def _is_address(written: str, kind: type[IPv4Address | IPv6Address]) -> bool:
    # Without a digit, as in `a::b`, it is rather a name in code.
    if not re.search("[0-9]", written):
        return False
    try:
        kind(written)
    except AddressValueError:
        return False
    return True


def _apart(findings: Iterator[_Finding]) -> list[_Finding]:
    """In their order; those that overlap as one, which the earliest and longest of them names."""
    apart: list[_Finding] = []
    for each in sorted(findings, key=lambda each: (each.start, -each.end)):
        if apart and each.start < apart[-1].end:
            apart[-1] = replace(apart[-1], end=max(apart[-1].end, each.end))
        else:
            apart.append(each)
    return apart


def _replaced(text: str, findings: list[_Finding], position: int) -> tuple[str, int]:
    """The text with names in place of findings, and where `position` is in it."""
    parts, done, moved = [], 0, position
    for each in findings:
        parts += [text[done : each.start], f"<{each.name}>"]
        done = each.end
        if position > each.start:
            moved += len(parts[-1]) - (min(position, each.end) - each.start)
    return "".join([*parts, text[done:]]), moved
