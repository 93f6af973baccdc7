"""Scores on disk: the same numbers again, nothing is run twice, damage is named."""

import numpy as np
import pytest

from hybridizer.core.errors import PlanError, Problem
from hybridizer.core.journal import Journal, JournalError
from hybridizer.scan.score import Score
from hybridizer.scan.score_log import ScoreLog

HOST = (("a", 0), ("a", 1), ("a", 2))
CUT, OTHER, IMPOSSIBLE = HOST[1:], HOST[:2], (("a", 2), ("a", 0))


class Counting:
    """A scorer that remembers what it ran and kept."""

    def __init__(self):
        self.ran, self.kept = [], []

    def keep(self, layers):
        self.kept.append(layers)

    def forget(self):
        self.kept.clear()

    def score(self, layers):
        if layers == IMPOSSIBLE:
            raise PlanError(Problem("layers", "not in this order.", ""))
        self.ran.append(layers)
        return Score(np.array([1 / 3, len(layers)]), np.array([1.0, 0]), np.array([0.1, 2e-300]))


def open_log(path, scorer, key="key"):
    made = []
    return ScoreLog(Journal(path, key, "scan (same donors and items)"), lambda: made.append(1) or scorer, (2, 2)), made


def test_scores_come_back_bit_for_bit_and_no_model_is_loaded_for_them(tmp_path):
    scorer = Counting()
    log, _ = open_log(tmp_path / "j", scorer)
    first = log.score(CUT)
    again, made = open_log(tmp_path / "j", Counting())
    again.prepare([HOST])
    found = again.score(CUT)
    assert made == []
    for name in ("bits", "hit", "target_prob"):
        assert np.array_equal(getattr(found, name), getattr(first, name))


def test_each_model_is_run_once_and_what_is_kept_follows_the_paths(tmp_path):
    scorer = Counting()
    log, made = open_log(tmp_path / "j", scorer)
    log.prepare([HOST])
    assert made == []
    log.score(CUT)
    log.score(CUT)
    assert scorer.ran == [CUT] and scorer.kept == [HOST] and made == [1]
    log.prepare([HOST, CUT])
    assert scorer.kept == [HOST]
    log.score(OTHER)
    assert scorer.kept == [HOST, CUT] and scorer.ran == [CUT, OTHER]


def test_a_model_that_cannot_be_is_not_tried_again(tmp_path):
    for scorer in (Counting(), None):
        log, _ = open_log(tmp_path / "j", scorer)
        with pytest.raises(PlanError, match=r"a 2, 0: not in this order"):
            log.score(IMPOSSIBLE)


def test_a_line_cut_short_is_scored_again(tmp_path):
    log, _ = open_log(tmp_path / "j", Counting())
    log.score(CUT)
    log.score(OTHER)
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes()[:-9])
    scorer = Counting()
    again, _ = open_log(tmp_path / "j", scorer)
    again.score(CUT)
    again.score(OTHER)
    assert scorer.ran == [OTHER]


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"layers": [["a"]]}', '{"layers": [["a", 0]], "bits": "x"}'])
def test_damage_is_named_with_its_line(tmp_path, line):
    open_log(tmp_path / "j", Counting())[0].score(CUT)
    with (tmp_path / "j").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(JournalError, match=r"j:3: damaged journal: the line holds no score"):
        open_log(tmp_path / "j", Counting())


@pytest.mark.parametrize("bits", ["[1.0]", "[[1.0, 2.0]]", "1.0"])
def test_a_score_of_other_items_is_damage(tmp_path, bits):
    open_log(tmp_path / "j", Counting())
    line = f'{{"layers": [["a", 0]], "bits": {bits}, "hit": [1.0, 0.0], "target_prob": [0.1, 0.2]}}'
    with (tmp_path / "j").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(JournalError, match=r"j:2: damaged journal: the line holds a score of other items"):
        open_log(tmp_path / "j", Counting())


def test_the_journal_of_another_scan_is_not_used(tmp_path):
    open_log(tmp_path / "j", Counting())
    with pytest.raises(JournalError, match=r"not the journal of this scan \(same donors and items\)"):
        open_log(tmp_path / "j", Counting(), key="other")
