"""Every purpose of a run has random numbers of its own."""

import collections
import sys

import numpy as np

import running
from runs import collector


def draw_all(logdir, monkeypatch):
  """`{place in the code: states of its generators}` of a short run.

  With many short episodes and evaluations, but without updates.
  """
  real, found = np.random.default_rng, collections.defaultdict(set)

  def default_rng(entropy):
    caller = sys._getframe(1)
    place = f'{caller.f_globals["__name__"]}.{caller.f_code.co_name}'
    if place == 'runs.driver._begin':  # Of training or of evaluation.
      place += f' {entropy[1]}'
    found[place].add(
        tuple(np.random.SeedSequence(entropy).generate_state(4)))
    return real(entropy)

  monkeypatch.setattr(np.random, 'default_rng', default_rng)
  assert running.run(
      logdir, task='hooks:good', action_repeat=1, time_limit=4, prefill=8,
      steps=100, eval_every=10, pretrain=0, train_every=1000) == 0
  return found


def shared(found):
  """Pairs of places that have a generator in common."""
  return [
      (one, two) for one in found for two in found
      if one < two and found[one] & found[two]]


def test_no_two_purposes_share_a_stream(tmp_path, monkeypatch):
  found = draw_all(tmp_path, monkeypatch)
  assert len(found) >= 3
  assert shared(found) == []


def test_layout_of_older_runs_did(tmp_path, monkeypatch):
  """So the test above can fail."""
  monkeypatch.setattr(collector.Collector, 'layout', 1)
  assert shared(draw_all(tmp_path, monkeypatch))
