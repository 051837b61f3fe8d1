"""Answers held against profiles, for tests."""

from __future__ import annotations

from callmill.config.api_profile import ApiProfile
from callmill.limits.headers import read_feedback
from callmill.workers.transports.port import Response
from callmill.workers.verdict import AnswerRules, classify_response


def rules(**keys):
    """Build the rules of a profile with the keys given."""
    return AnswerRules(ApiProfile(name="x", base_url="https://x.test", **keys))


DEFAULT = rules()


def judge(status, headers=None, method="GET", body=b"", by=DEFAULT):
    """Classify an answer, under the default policy unless another is given."""
    headers = headers or {}
    return classify_response(method, Response(status, headers, body), read_feedback(headers), by)
