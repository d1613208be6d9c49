"""Removes personal data from texts: e-mail addresses, phone numbers, payment card numbers, IBANs
and IP addresses. Owns the patterns and the placeholders, which are named as in Presidio.

Does not find names, postal addresses, or encoded or spelled-out data. recorder.py decides when to
redact.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from phonenumbers import SUPPORTED_REGIONS, PhoneNumberMatcher
from stdnum import iban, luhn

# Scripts that separate words with spaces only: in others a whole sentence would match.
_LETTERS = "A-Za-z\u00c0-\u0dff"
_LOCAL = f"{_LETTERS}0-9_.%+&'-"
_EMAIL = re.compile(
    # A sign before the first letter belongs to the sentence, such as a quotation mark.
    rf"(?<![{_LOCAL}])[.%+&'-]*+([{_LETTERS}0-9_][{_LOCAL}]*+"
    rf"@(?:[{_LETTERS}0-9-]+\.)+[{_LETTERS}][{_LETTERS}0-9-]*[{_LETTERS}0-9])"
)
_CARDS = [
    # Not a decimal fraction. A lookahead, so that a number may begin inside a wrong one.
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


PERSONAL_DATA = ("EMAIL_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER")


@dataclass(frozen=True)
class Finding:
    """Personal data in a text, from `start` to `end`; `name` is its placeholder."""

    start: int
    end: int
    name: str


class Redactor:
    """phone_region: the country whose phone numbers are found without a country code. Numbers with
    a country code are always found. Raises ValueError for a region that is none."""

    def __init__(self, phone_region: str | None) -> None:
        self._region = phone_region and check_region(phone_region)

    def redact(self, text: str) -> str:
        """Returns the text with a placeholder for all personal data."""
        return self.redact_at(text, 0)[0]

    def redact_at(self, text: str, position: int) -> tuple[str, int]:
        """As `redact`, and returns where `position` is in the result, after any placeholder."""
        # Redacted text may match again. The loop ends: each pass removes digits, @ signs or colons.
        while findings := merged_overlaps(self.findings(text)):
            text, position = _replaced(text, findings, position)
        return text, position

    def findings(self, text: str) -> Iterator[Finding]:
        """Yields all personal data in a text, in no order."""
        for match in _EMAIL.finditer(text):
            yield Finding(*match.span(1), "EMAIL_ADDRESS")
        for start, end in _cards(text):
            yield Finding(start, end, "CREDIT_CARD")
        for start, end in _ibans(text):
            yield Finding(start, end, "IBAN_CODE")
        for start, end in _addresses(text):
            yield Finding(start, end, "IP_ADDRESS")
        # With its default max_tries the library gives up in texts with many numbers.
        for number in PhoneNumberMatcher(text, self._region, max_tries=sys.maxsize):
            yield Finding(number.start, number.end, "PHONE_NUMBER")


def check_region(region: str) -> str:
    """Returns the region. Raises ValueError unless its phone numbers are supported."""
    if region not in SUPPORTED_REGIONS:
        raise ValueError("no country's code; write two capital letters such as US, GB or DE")
    return region


def merged_overlaps(findings: Iterator[Finding]) -> list[Finding]:
    """Returns the findings in order. Overlapping ones are merged under the first, longest one."""
    merged: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: (finding.start, -finding.end)):
        if merged and finding.start < merged[-1].end:
            merged[-1] = replace(merged[-1], end=max(merged[-1].end, finding.end))
        else:
            merged.append(finding)
    return merged


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _CARDS:
        for match in pattern.finditer(text):
            if luhn.is_valid(re.sub("[ -]", "", match[1])):
                yield match.span(1)


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        # Words after the IBAN look like more groups of it.
        ends = [word.end() for word in re.finditer("[^ -]+", match[1])]
        end = next((end for end in ends if iban.is_valid(match[1][:end])), None)
        if end is not None:
            yield match.start(1), match.start(1) + end


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for pattern, kind in ((_IPV4, IPv4Address), (_IPV6, IPv6Address)):
        for match in pattern.finditer(text):
            # The sentence may go on with a colon, or end.
            for candidate in (match[0], match[0].rstrip(".:"), match[0].rstrip(".")):
                if _is_address(candidate, kind):
                    yield match.start(), match.start() + len(candidate)
                    break


def _is_address(text: str, kind: type[IPv4Address | IPv6Address]) -> bool:
    # Without a digit, as in `a::b`, it is more likely a name in code.
    if not re.search("[0-9]", text):
        return False
    try:
        kind(text)
    except AddressValueError:
        return False
    return True


def _replaced(text: str, findings: list[Finding], position: int) -> tuple[str, int]:
    """Returns the text with placeholders, and where `position` is in it."""
    parts, done, moved = [], 0, position
    for finding in findings:
        parts += [text[done : finding.start], f"<{finding.name}>"]
        done = finding.end
        if position > finding.start:
            moved += len(parts[-1]) - (min(position, finding.end) - finding.start)
    return "".join([*parts, text[done:]]), moved
