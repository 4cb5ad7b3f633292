"""The lines of docs/library.md run as they are, in another directory."""

import re
import subprocess
import sys

import numpy as np

import dreamer
import running

SHAPES = '''
assert feat.shape == (1, 10, 16), feat.shape
assert imagined.shape == (1, 5, 16)
assert frames.shape == (1, 5, 64, 64, 3)
assert rewards.shape == values.shape == (1, 5)
assert proposed.shape == (1, 5, 2)
# The next image of an imagined future is the one that its first action leads to.
again = model.img_step(last, future[:, 0])
imagined_deter = imagined[:, 0, 4:]
np.testing.assert_allclose(again['deter'], imagined_deter, rtol=1e-4, atol=1e-5)
begun = model.obs_step(
    {name: x[:, -2] for name, x in post.items()}, actions[:, -1], embed[:, -1])
np.testing.assert_allclose(
    begun[0]['deter'], last['deter'], rtol=1e-4, atol=1e-5)
assert 0 <= float(np.min(dreamer.scale_image(images))) + 0.5
assert np.isfinite(frames).all() and np.isfinite(values).all()
print('as documented')
'''


def test_lines_of_the_page(tmp_path):
  text = (running.ROOT / 'docs' / 'library.md').read_text()
  code, = (
      block for block in re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)
      if 'imagine' in block)
  logdir, = re.findall(r"Path\('(.*?)'\)", code)
  config = dreamer.define_config().parse(['--preset', 'debug'])
  config.precision = '32'
  dreamer.Dreamer(config, 2).save(tmp_path / logdir / 'variables.pkl')
  batch = running.random_batch(config)
  rng = np.random.default_rng(0)
  (tmp_path / logdir / 'episodes').mkdir()
  np.savez(
      tmp_path / logdir / 'episodes' / '20200101T000000-0-15.npz',
      image=batch['image'].reshape(-1, 64, 64, 3)[:15],
      action=rng.uniform(-1, 1, (15, 2)).astype(np.float32))
  done = subprocess.run(
      [sys.executable, '-c', code + SHAPES], cwd=tmp_path, text=True,
      capture_output=True,
      env={**running.environment(), 'PYTHONPATH': str(running.ROOT)})
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'as documented\n' and not done.stderr
