"""HTML pages, parsed for tests."""

from html.parser import HTMLParser

_ADDRESSES = ("action", "formaction", "href", "hx-get", "hx-post", "src")


class Markup(HTMLParser):
    """A page's elements with their attributes, in order, and all of its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def structure(self) -> list[tuple[str, tuple[str, ...]]]:
        """The elements with their attributes' names."""
        return [(tag, tuple(attributes)) for tag, attributes in self.elements]

    @property
    def addresses(self) -> set[str]:
        """All addresses on the page."""
        return {
            value or ""
            for _, attributes in self.elements
            for name, value in attributes.items()
            if name in _ADDRESSES
        }

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Returns the attributes of each element with that tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    def forms(self) -> dict[str, str]:
        """The method of each form, by its action."""
        return {str(form.get("action", "")): str(form["method"]) for form in self.all("form")}
