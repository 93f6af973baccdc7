"""Annotated shapes are checked in a test run, and only there."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from hybridizer.models.loss import NextToken, token_losses
from hybridizer.models.ridge import ridge_map
from hybridizer.trace.divergence import js_divergence, kl_divergence
from hybridizer.trace.readings import Readings
from hybridizer.trace.sensitivity import task_particles

HEAD = nn.Linear(4, 7, bias=False)
STATES = np.zeros((3, 5))
PROMPTS = np.zeros(3)
WRONG = {
    "more targets than tokens": lambda: token_losses(torch.zeros(3, 4), HEAD, torch.zeros(2, dtype=torch.int64)),
    "targets of 32 bits": lambda: NextToken(torch.zeros(3, dtype=torch.int32)),
    "two vocabularies": lambda: js_divergence(torch.zeros(3, 7), torch.zeros(3, 8)),
    "an axis too few": lambda: kl_divergence(torch.zeros(3, 7), torch.zeros(3, 7)),
    "rows without partners": lambda: ridge_map(torch.zeros(5, 2), torch.zeros(4, 2), 0.1),
    "one prompt without its axis": lambda: task_particles(np.zeros(5), 0.5, 0.1, 0.1),
    "readings of two lengths": lambda: Readings(STATES, None, STATES, STATES, PROMPTS, PROMPTS, np.zeros(4)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_shape_is_an_error_in_a_test_run(wrong):
    with pytest.raises(TypeCheckError):
        WRONG[wrong]()


def test_every_checked_module_has_shapes_to_check(request):
    """A module that was renamed would otherwise no longer be checked."""
    conftest = request.config.pluginmanager.get_plugin(str(request.config.rootpath / "tests" / "conftest.py"))
    for name in conftest.CHECKED_MODULES:
        path = request.config.rootpath / (name.replace(".", "/") + ".py")
        assert "from jaxtyping import" in path.read_text(), name


@pytest.mark.slow
def test_outside_of_a_test_run_nothing_is_checked_or_slowed_down():
    """The functions are the ones in the source, without a wrapper, and the checker is not even imported."""
    code = (
        "import sys, hybridizer.models.loss as loss, hybridizer.trace.divergence as divergence\n"
        "assert 'beartype' not in sys.modules\n"
        "assert not hasattr(loss.token_losses.__wrapped__, '__wrapped__')  # torch.no_grad() is the one wrapper\n"
        "assert not hasattr(divergence.js_divergence, '__wrapped__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
