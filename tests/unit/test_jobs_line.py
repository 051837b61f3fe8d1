"""Lines and traffic classes as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.errors import UsageError
from callmill.jobs.line import Line, api_of, identity_of, shown_line, traffic_class
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass

TENANTS = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
APIS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)


@given(
    api=APIS,
    priority=st.sampled_from(Priority),
    tenant=st.just("") | TENANTS,
    identity=st.just("") | st.from_regex(r"[0-9a-f]{10}", fullmatch=True),
    batch=st.just("") | st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
)
def test_text_is_read_back(api, priority, tenant, identity, batch):
    """A line's text gives the line again, and at a glance its API, that API's identity, and what people read."""
    line = Line(api, TrafficClass(priority, tenant), identity=identity, batch=batch)
    assert Line.parse(str(line)) == line
    assert (api_of(str(line)), identity_of(str(line))) == (api, identity)
    assert shown_line(str(line)) == str(Line(api, TrafficClass(priority, tenant)))


def test_texts_of_lines():
    """An API's own line is the API's name, as it was before there were others."""
    assert str(Line("crm")) == str(Line("crm", NORMAL)) == "crm"
    assert str(Line("crm", TrafficClass(Priority.BULK))) == "crm@bulk"
    assert str(Line("crm", TrafficClass(tenant="acme"))) == "crm@normal@acme"
    assert str(Line("crm", identity="3fa94c2110")) == "crm@i3fa94c2110"
    assert str(Line("crm", TrafficClass(Priority.BULK), 1, "3fa94c2110", "b1")) == "crm@i3fa94c2110@b=b1@bulk"


@pytest.mark.parametrize(
    "text", ["crm@", "crm@urgent", "crm@bulk@", "crm@bulk@a@b", "crm@bulk@a/b", "crm@bulk@" + "x" * 65]
)
def test_other_texts_are_refused(text):
    """What is no line, or one of a newer version, is told apart."""
    with pytest.raises(ValueError, match=r"."):
        Line.parse(text)


@pytest.mark.parametrize(
    ("priority", "tenant"), [("urgent", ""), ("", ""), ("bulk", "a b"), ("bulk", "a@b"), ("bulk", "é")]
)
def test_wrong_words_of_a_caller(priority, tenant):
    """A wrong priority or tenant is the caller's mistake, and the message says what is right."""
    with pytest.raises(UsageError, match=r"interactive, normal, bulk|letters, digits"):
        traffic_class(priority, tenant)
