import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
from PIL import Image
import pytest

from common import terminal
from common.backend import tf
import running
from runs import logs


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def pendulum(count, size=64):
  """Frames of something that moves."""
  frames = np.full((count, size, size, 3), 255, np.uint8)
  for index in range(count):
    at = (3 * index) % (size - 8)
    frames[index, size // 2:size // 2 + 8, at:at + 8] = (200, 30, 30)
  return frames


def noise(count, size=64, height=None):
  rng = np.random.default_rng(0)
  shape = count, height or size, size, 3
  return rng.normal(128, 25, shape).clip(0, 255).astype(np.uint8)


def decode(data, fps):
  """Every frame for as long as it is shown, `[T, H, W, 3]`."""
  image = Image.open(io.BytesIO(data))
  frames = []
  for index in range(image.n_frames):
    image.seek(index)
    times = image.info['duration'] * fps / 1000
    assert times == round(times)
    frames += [np.asarray(image.convert('RGB'))] * round(times)
  return np.stack(frames)


class TestMetrics:

  def test_numbers_keep_their_kind(self, tmp_path):
    logger = logs.Logger(tmp_path)
    logger.scalars(np.int64(1000), {
        'int': 3, 'numpy_int': np.int64(4), 'float': 2.0,
        'float32': np.float32(0.5), 'tensor': tf.constant(0.25)}, 'agent')
    logger.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert text == (
        '{"step": 1000, "int": 3, "numpy_int": 4, "float": 2.0, '
        '"float32": 0.5, "tensor": 0.25}\n')

  @pytest.mark.parametrize('value', [
      float('nan'), float('inf'), -np.float32('inf'), tf.constant(np.nan)])
  def test_what_json_does_not_know_is_null(self, tmp_path, value):
    logger = logs.Logger(tmp_path)
    logger.scalars(1, {'bad': value, 'good': 1}, 'agent')
    logger.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert text == '{"step": 1, "bad": null, "good": 1}\n'

  @pytest.mark.parametrize('cut', [
      b'{"step": 2, "test/ret', b'{', b'\0' * 20, b'{"step": 2, "x": "\xc3'])
  def test_cut_line_is_dropped(self, tmp_path, cut):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n' + cut)
    logger = logs.Logger(tmp_path)
    logger.scalars(3, {}, 'agent')
    logger.close()
    assert lines(path) == [{'step': 1}, {'step': 3}]

  def test_whole_line_without_an_end_is_kept(self, tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    logger = logs.Logger(tmp_path)
    logger.scalars(3, {}, 'agent')
    logger.close()
    assert lines(path) == [{'step': 1}, {'step': 2}, {'step': 3}]

  @pytest.mark.parametrize('content', [b'', b'{"step": 1}\n', b'{"st'])
  def test_other_files_are_continued(self, tmp_path, content):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(content)
    logs.repair(path)
    assert path.read_bytes() == (content if content.endswith(b'\n') else b'')

  def test_full_disk_is_one_line(self, tmp_path):
    logger = logs.Logger(tmp_path)
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    with pytest.raises(terminal.UserError, match='No space left'):
      logger.scalars(1, {'x': 1}, 'agent')
    logger.close()


class TestGif:

  @pytest.mark.parametrize('count', [1, 2, 50, 500])
  def test_every_frame_comes_back(self, count):
    frames = pendulum(count)
    assert np.array_equal(decode(logs.gif(frames), 20), frames)

  def test_it_lasts_as_long_as_it_should_and_repeats(self):
    image = Image.open(io.BytesIO(logs.gif(pendulum(30), fps=10)))
    assert image.n_frames == 30
    assert image.info['duration'] == 100
    assert image.info['loop'] == 0

  def test_frames_that_stand_still_keep_their_time(self):
    frames = np.repeat(pendulum(4), 5, 0)
    assert np.array_equal(decode(logs.gif(frames), 20), frames)

  def test_shape_of_the_open_loop_video(self):
    frames = np.concatenate([
        np.concatenate([pendulum(20)] * 6, 2), noise(20, 6 * 64, 128)], 1)
    back = decode(logs.gif(frames, 10), 10)
    assert back.shape == (20, 192, 384, 3)
    error = np.abs(back.astype(int) - frames)
    assert error[:, :64].mean() < 1
    # 256 colours for noise in three channels.
    assert error[:, 64:].mean() < 6

  def test_a_film_is_the_beginning_of_a_long_episode(
      self, tmp_path, monkeypatch):
    page = ' '.join((running.ROOT / 'docs/agents.md').read_text().split())
    assert f'the first {logs.FILM_FRAMES:,} images of an episode' in page
    sizes = []
    monkeypatch.setattr(logs, 'FILM_FRAMES', 5)
    monkeypatch.setattr(
        logs, 'gif', lambda frames, fps: sizes.append(len(frames)) or b'')
    with contextlib.closing(logs.Logger(tmp_path)) as logger:
      for count in (4, 9):
        logger.video(0, 'sim/test/x', noise(count, 8, 8))
    assert sizes == [4, 5]

  def test_noisy_frames_are_fast(self):
    frames = noise(500)
    began = time.process_time()
    data = logs.gif(frames)
    # Measured 0.2 s; a palette for each frame takes 4 s.
    assert time.process_time() - began < 1.5
    assert decode(data, 20).shape == frames.shape


class TestText:

  def test_table(self):
    assert logs.table({'a': 1, 'b': '', 'c': 'x|y'}) == (
        '| name | value |\n| --- | --- |\n| a | `1` |\n| b |  |\n| c | `x|y` |')


VIDEO = pendulum(50)
REPORT = 'module   copied\nreward   4 (100)'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """A log directory with everything that a logger writes."""
  logdir = tmp_path_factory.mktemp('logs') / 'task' / 'dreamer' / '0'
  logdir.mkdir(parents=True)
  logger = logs.Logger(logdir)
  logger.text(0, 'config', logs.table({'seed': 3, 'reset': '^a|_b_.*'}))
  logger.text(0, 'transfer', logs.verbatim(REPORT))
  for step in (1000, 2000):
    logger.scalars(step, {'model_loss': step / 8, 'bad': np.nan}, 'agent')
    logger.scalars(step, {'test/return': -step / 4}, 'sim')
  logger.video(2000, 'sim/test/Hopper', VIDEO)
  logger.video(2000, 'agent/openl', noise(10, 384, 192), fps=10)
  logger.histograms(2000, {'reward/hout/bias': tf.Variable([1., 2., 4.])})
  logger.close()
  return logdir


@pytest.fixture(scope='module')
def tensorboard(written):
  """Answers of a TensorBoard over the log directory: status 200 or error."""
  program = os.path.join(os.path.dirname(sys.executable), 'tensorboard')
  server = subprocess.Popen(
      [program, '--logdir', str(written.parents[2]), '--host', '127.0.0.1',
       '--port', '0'], stderr=subprocess.PIPE, text=True)
  try:
    for line in server.stderr:
      found = re.search(r'http://127\.0\.0\.1:\d+', line)
      if found:
        break
    else:
      pytest.fail('TensorBoard did not start')

    def get(path, **query):
      url = f'{found[0]}/data/plugin/{path}?{urllib.parse.urlencode(query)}'
      with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.headers['Content-Type'], answer.read()

    limit = time.monotonic() + 60
    while b'task/dreamer/0' not in get('histograms/tags')[1]:
      assert time.monotonic() < limit, 'TensorBoard read nothing'
      time.sleep(0.2)
    yield get
  finally:
    server.terminate()
    server.wait()
    server.stderr.close()


RUN = 'task/dreamer/0'


class TestTensorBoard:

  def test_scalars(self, tensorboard):
    tags = json.loads(tensorboard('scalars/tags')[1])
    assert set(tags[RUN]) == {
        'agent/model_loss', 'agent/bad', 'sim/test/return',
        'Overview/world_model_error', 'Overview/test_return'}
    _, data = tensorboard('scalars/scalars', run=RUN, tag='agent/model_loss')
    assert [row[1:] for row in json.loads(data)] == [[1000, 125], [2000, 250]]
    _, data = tensorboard('scalars/scalars', run=RUN, tag='agent/bad')
    assert [row[1:] for row in json.loads(data)] == [
        [1000, 'NaN'], [2000, 'NaN']]

  @pytest.mark.parametrize('tag, data', [
      ('sim/test/Hopper', logs.gif(VIDEO)),
      ('agent/openl', logs.gif(noise(10, 384, 192), 10))])
  def test_videos_byte_for_byte(self, tensorboard, tag, data):
    assert tag in json.loads(tensorboard('images/tags')[1])[RUN]
    entry, = json.loads(tensorboard(
        'images/images', run=RUN, tag=tag, sample=0)[1])
    assert entry['step'] == 2000
    # The answer holds the rest of the image's address.
    query = dict(urllib.parse.parse_qsl(entry['query']))
    kind, image = tensorboard('images/individualImage', **query)
    assert kind == 'image/gif'
    assert image == data

  def test_text(self, tensorboard):
    config, = json.loads(tensorboard('text/text', run=RUN, tag='config')[1])
    assert '<td><code>^a|_b_.*</code></td>' in config['text']
    transfer, = json.loads(tensorboard(
        'text/text', run=RUN, tag='transfer')[1])
    assert REPORT in transfer['text'] and '<pre>' in transfer['text']

  def test_histograms(self, tensorboard):
    tags = json.loads(tensorboard('histograms/tags')[1])
    assert list(tags[RUN]) == ['reward/hout/bias']
    _, data = tensorboard(
        'histograms/histograms', run=RUN, tag='reward/hout/bias')
    (_, step, buckets), = json.loads(data)
    assert step == 2000
    assert sum(count for _, _, count in buckets) == 3
