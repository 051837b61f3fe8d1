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

_INLINE_SCRIPT = """<script type="text/javascript">
  var autorefresh = {{ autorefresh }};
</script>"""
_SCRIPT = (
    """<script src="{{ reverse_url('callmill_static', 'autorefresh.js') }}" data-on="{{ autorefresh }}"></script>"""
)
_REPLACEMENTS: Mapping[str, tuple[str, str]] = {
    # The policy of the pages allows no script in them.
    "workers.html": (_INLINE_SCRIPT, _SCRIPT),
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
        if name in _REPLACEMENTS:
            former, replacement = _REPLACEMENTS[name]
            if text.count(former) != 1:
                raise InternalError(f"Flower's {name} has changed: it has no single {former!r}")
            text = text.replace(former, replacement)
        return Template(text, name=name, loader=self)
