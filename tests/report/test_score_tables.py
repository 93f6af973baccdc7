"""What a terminal shows of scores: every figure, in 80 columns, whatever names and texts hold."""

import io

import pytest
from rich.console import Console

from hybridizer.report.score_tables import bits_table, samples_text


def shown(renderable):
    file = io.StringIO()
    Console(file=file, width=80).print(renderable)
    return file.getvalue()


def row(name="news", **changes):
    return {
        "name": name, "role": "general", "num_documents": 251, "num_bytes": 431_234, "documents_available": 300,
        "documents_trained": 0, "before": 0.98712, "before_ci": [0.961, 1.012], "after": 0.95, "after_ci": [0.93, 0.97],
        "change": -0.03712, "change_ci": [-0.0411, -0.033], "verdict": "better", "caveat": None, **changes,
    }  # fmt: skip


def test_a_text_is_shown_with_all_its_figures():
    text = shown(bits_table({"sets": [row()]}))
    for figure in ("news", "general", "251 of 300 documents", "431,234 bytes", "0.987", "0.961..1.012", "0.950",
                   "0.930..0.970", "-0.037", "-0.041..-0.033", "better"):  # fmt: skip
        assert figure in text
    assert "bits per byte, less is better, each with its 95% interval over documents" in text
    assert " of " not in shown(bits_table({"sets": [row(num_documents=300)]}))


def test_what_weakens_a_figure_stands_below_the_table():
    text = shown(bits_table({"sets": [row("a", caveat="only 7 documents"), row("b", documents_trained=1200)]}))
    assert "\na: only 7 documents\nb: 1,200 documents left out because training sees the same text\n" in text


def test_one_document_has_figures_without_intervals():
    one = row(num_documents=1, before_ci=None, after_ci=None, change_ci=None, verdict="no difference shown")
    text = shown(bits_table({"sets": [one]}))
    assert "0.987" in text and ".." not in text


def test_samples_stand_under_their_prompt_before_and_after():
    sample = {"source": "news", "prompt": "It was\na", "before": " dark\tnight", "after": " stormy one"}
    text = shown(samples_text({"samples": [sample]}))
    assert "greedy continuations of raw text, no chat template" in text
    assert "news: It was a\nbefore  dark night\n after  stormy one\n" in text


@pytest.mark.parametrize("name", ["x" * 90, "模" * 60, "[bold]b[/bold]"])
def test_nothing_is_cut_off_and_nothing_is_markup_in_80_columns(name):
    sample = {"source": name, "prompt": "[red]p[/red]" + "x" * 90, "before": "[/b]", "after": "\x1b[31mred\x07"}
    text = shown(bits_table({"sets": [row(name)] * 2})) + shown(samples_text({"samples": [sample]}))
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert "[red]p[/red]" in text and "[/b]" in text and "\x1b" not in text and "\x07" not in text
    assert "[bold]b[/bold]" not in name or text.count(name) == 3
