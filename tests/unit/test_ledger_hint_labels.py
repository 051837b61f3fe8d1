"""What people read of a chunk."""

from __future__ import annotations

import pytest

from callmill.ledger.hint_labels import HintLabels
from callmill.ledger.keys import ChunkRef

REF = ChunkRef("b1", 3, "crm")


@pytest.mark.parametrize(
    ("indexes", "count", "jobs"),
    [(0, 250, "jobs 0-249"), (7, 1, "job 7"), ([0, 2, 4], 3, "3 of jobs 0-4")],
)
def test_label_names_batch_api_and_jobs(indexes, count, jobs):
    """A label has the batch's name, the API and the positions of the chunk's jobs, gaps said."""
    labels = HintLabels()
    labels.note(REF, indexes, count)
    assert labels.text(REF, "translate") == f"translate · crm · {jobs}"


def test_what_is_unknown_is_named_by_its_id():
    """Without a name the batch's id stands for it, without jobs the chunk's number."""
    assert HintLabels().text(REF) == "b1 · crm · chunk 3"


@pytest.mark.parametrize("name", ["translate", "a · b · c", "crm"])
def test_a_label_survives_being_published_again(name):
    """Whoever learnt a label shows the same one again, whatever is in the batch's name."""
    there, here = HintLabels(), HintLabels()
    there.note(REF, 0, 250)
    here.learn(REF, there.text(REF, name))
    assert here.text(REF) == there.text(REF)


def test_a_name_learnt_from_one_chunk_serves_the_batch():
    """One label of a batch is enough to name its other chunks, and those of no other batch."""
    labels = HintLabels()
    labels.learn(REF, "translate · crm · jobs 0-99")
    assert labels.text(ChunkRef("b1", 4, "crm")) == "translate · crm · chunk 4"
    assert labels.text(ChunkRef("b2", 4, "crm")) == "b2 · crm · chunk 4"


@pytest.mark.parametrize("text", ["", "('b1', 3, 'crm')", "translate · other · jobs 0-99", "b1 · crm · chunk 3"])
def test_foreign_texts_teach_nothing(text):
    """A hint that another program published, or that showed ids only, teaches nothing."""
    labels = HintLabels()
    labels.learn(REF, text)
    assert labels.text(REF) == "b1 · crm · chunk 3"


def test_a_long_name_becomes_one_short_line():
    """A name with line breaks or without end does not blow up the message."""
    label = HintLabels().text(REF, "first\nsecond " + "x" * 500)
    assert label.startswith("first second x")
    assert len(label) < 100


def test_what_is_known_is_bounded():
    """The oldest chunks are forgotten, the latest ones kept, however many come by."""
    labels = HintLabels()
    refs = [ChunkRef("b1", number, "crm") for number in range(10_001)]
    for ref in refs:
        labels.note(ref, ref.number, 1)
    assert labels.text(refs[0]) == "b1 · crm · chunk 0"
    assert labels.text(refs[-1]) == "b1 · crm · job 10000"
