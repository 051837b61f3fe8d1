"""The templates of the dashboard: ours in front of Flower's, and our tabs and workers in Flower's own pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flower.urls import settings as flower_settings
from tornado.template import Loader, Template

from callmill.errors import InternalError

OURS = Path(__file__).parent / "templates"
_FLOWERS = Path(flower_settings["template_path"])

_INSERTIONS: Mapping[str, tuple[str, str]] = {
    # Flower's template: behind which text of it our template goes.
    "navbar.html": ('<ul class="app-nav navbar-nav">', "tabs.html"),
    "workers.html": ("</figure>\n  </section>", "processes.html"),
}


class Templates(Loader):
    """Loads a template of ours, else of Flower; what we add to a page of Flower is one insertion at a known place.

    Raises:
        InternalError: This version of Flower has no such place.
    """

    def __init__(self) -> None:
        super().__init__(str(OURS))

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:  # noqa: ARG002 - Tornado's signature
        """Return the name: every template has one, wherever it is named."""
        return name

    def _create_template(self, name: str) -> Template:
        ours = OURS / name
        text = (ours if ours.is_file() else _FLOWERS / name).read_text(encoding="utf-8")
        if name in _INSERTIONS:
            place, insertion = _INSERTIONS[name]
            if text.count(place) != 1:
                raise InternalError(f"Flower's {name} has changed: it has no single {place!r}")
            text = text.replace(place, f'{place}\n{{% include "{insertion}" %}}')
        return Template(text, name=name, loader=self)
