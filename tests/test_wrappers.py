"""Environments of every kind, their wrappers, and what bad names get."""

import os
import pathlib
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

try:
  import pybullet
except ImportError:
  pybullet = None  # Tests that need it are skipped.

from common import terminal
from envs import bullet, control
import wrappers

ROOT = pathlib.Path(wrappers.__file__).parent

BULLET = {  # Name, number of actions, distance and pitch of the camera.
    'HopperBulletEnv-v0': (3, 2, 0),
    'Walker2DBulletEnv-v0': (6, 2, 0),
    'HalfCheetahBulletEnv-v0': (6, 2, 0),
    'AntBulletEnv-v0': (8, 2, 0),
    'HumanoidBulletEnv-v0': (17, 2, 0),
    'HumanoidFlagrunBulletEnv-v0': (17, 2, 0),
    'HumanoidFlagrunHarderBulletEnv-v0': (17, 2, 0),
    'InvertedPendulumBulletEnv-v0': (1, 2, 0),
    'InvertedPendulumSwingupBulletEnv-v0': (1, 2, 0),
    'InvertedDoublePendulumBulletEnv-v0': (1, 2, 0),
    'ReacherBulletEnv-v0': (2, 1.05, 90),
    'PusherBulletEnv-v0': (7, 1.2, 45),
    'ThrowerBulletEnv-v0': (7, 1.2, 0),
}


class Toy(gym.Env):
  """Counts steps, ends after five, and shows the count in its picture."""

  observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
  action_space = gym.spaces.Box(
      np.array([0, -np.inf], np.float32), np.array([10, np.inf], np.float32))
  rewards = 1.0, 1.0, 1.0, 1.0, 1.0
  values = 0.0, 0.0, 0.0, 0.0, 0.0
  metadata = {'render_modes': ['rgb_array']}

  def __init__(self, render_mode='rgb_array'):
    self.render_mode = render_mode
    self.drawn = 0

  def reset(self, *, seed=None, options=None):
    self.count = 0
    return np.zeros(1), {}

  def step(self, action):
    self.received = action
    obs = np.full(1, self.values[self.count])
    reward = self.rewards[self.count]
    self.count += 1
    return obs, reward, self.count == 5, False, {}

  def render(self):
    self.drawn += 1
    return np.full((100, 80, 3), self.count, np.uint8)


class NanReward(Toy):
  rewards = 1.0, float('nan'), 1.0


class InfObservation(Toy):
  values = 0.0, float('inf'), 0.0


class Blind(Toy):
  def render(self):
    return None


class Strange(Toy):
  action_space = gym.spaces.MultiBinary(3)


def not_an_env():
  return 'nothing'


gym.register('WrappersToy-v0', entry_point=Toy)
gym.register('WrappersLimited-v0', entry_point=Toy, max_episode_steps=3)


@pytest.fixture
def make():
  """`make_env`, with everything closed at the end."""
  made = []

  def function(*args, **kwargs):
    made.append(wrappers.make_env(*args, **kwargs))
    return made[-1]

  yield function
  for env in made:
    env.close()


@pytest.fixture
def opengl():
  """Skips where dm_control cannot draw, with the package to install."""
  try:
    wrappers.make_env('dmc_cartpole_balance').close()
  except terminal.UserError as error:
    pytest.skip(str(error))


def actions(env, amount, seed=0):
  rng = np.random.default_rng(seed)
  shape = (amount, *env.action_space.shape)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def play(env, seed, amount, action_seed=0):
  """Everything that an episode shows."""
  obs, info = env.reset(seed=seed)
  steps = [(obs['image'].tobytes(), obs['reward'], info['discount'])]
  for action in actions(env, amount, action_seed):
    obs, reward, terminated, truncated, info = env.step(action)
    steps.append((
        obs['image'].tobytes(), obs['reward'], info['discount'], reward,
        terminated, truncated))
    if terminated or truncated:
      break
  return steps


def contains(env, obs):
  return env.observation_space.contains(
      {key: np.asarray(value) for key, value in obs.items()})


def check_interface(env):
  obs, info = env.reset(seed=1)
  assert contains(env, obs)
  assert obs['image'].shape == (64, 64, 3) and obs['image'].dtype == np.uint8
  assert obs['image'].flags['C_CONTIGUOUS']
  assert obs['image'].std() > 3
  assert obs['reward'] == 0 and obs['reward'].dtype == np.float32
  assert info['discount'] == 1.0
  env.action_space.seed(0)
  first = obs['image'].copy()
  for _ in range(10):
    obs, reward, terminated, truncated, info = env.step(
        env.action_space.sample())
    assert contains(env, obs)
    assert obs['reward'] == np.float32(reward)
    assert info['discount'] == 1.0 - terminated
    assert (terminated, truncated) == (False, False)
  assert (obs['image'] != first).any()
  assert env.render_frame(96, 128).shape == (96, 128, 3)


class Reference:
  """The stock environment, seen through the camera of the specification."""

  def __init__(self, task, seed):
    _, self._distance, self._pitch = BULLET[task]
    self._fixed = 'Pendulum' in task or 'Reacher' in task
    # As in envs/bullet.py: else some robots differ from others of their seed.
    with bullet._filled_memory():
      self._env = gym.make(task).unwrapped
      self._env.reset()
    self._env.reset(seed=seed)

  def step(self, action):
    return sum(self._env.step(action)[1] for _ in range(2))

  def position(self):
    if self._fixed:
      return self._env._p.getBasePositionAndOrientation(1)[0]
    return self._env._p.getLinkState(1, 0)[0]

  def image(self, target=None):
    physics = self._env._p
    view = pybullet.computeViewMatrixFromYawPitchRoll(
        target or self.position(), self._distance, 0, self._pitch, 0, 2)
    lens = pybullet.computeProjectionMatrixFOV(60, 1, 1, 25)
    image = physics.getCameraImage(
        64, 64, view, lens, lightDirection=(0, 1, 1), shadow=True,
        renderer=pybullet.ER_TINY_RENDERER)[2]
    return np.array(image, np.uint8).reshape(64, 64, 4)[..., :3]

  def close(self):
    self._env.close()


@pytest.mark.parametrize('task', BULLET)
class TestBullet:

  def test_interface(self, make, task):
    env = make(task)
    assert env.action_space == gym.spaces.Box(-1, 1, (BULLET[task][0],))
    check_interface(env)

  def test_matches_the_specified_camera(self, make, task):
    env, reference = make(task), Reference(task, 7)
    obs, _ = env.reset(seed=7)
    assert np.array_equal(obs['image'], reference.image())
    for action in actions(env, 20):
      obs, reward, *_ = env.step(action)
      assert reward == pytest.approx(reference.step(action), abs=1e-9)
      assert np.array_equal(obs['image'], reference.image())
    reference.close()

  def test_seed_repeats(self, make, task):
    env = make(task)
    first = play(env, 5, 30)
    play(env, 6, 60, action_seed=1)  # Long enough to fall and to touch.
    assert play(env, np.int64(5), 30) == first
    assert play(make(task), 5, 30) == first
    assert play(env, 6, 5) != first[:6]


def test_seed_repeats_whatever_memory_holds():
  """Without filled memory three in a hundred of these differ."""
  found = set()
  for _ in range(150):
    env = wrappers.make_env('HumanoidFlagrunHarderBulletEnv-v0')
    found.add(tuple(step[3] for step in play(env, 5, 6)[1:]))
    env.close()
  assert len(found) == 1


def test_camera_follows_the_robot(make):
  env, reference = make('HopperBulletEnv-v0'), Reference(
      'HopperBulletEnv-v0', 0)
  env.reset(seed=0)
  for _ in range(10):
    obs, *_ = env.step(np.ones(3, np.float32))
    reference.step(np.ones(3))

  def column(image):  # Of the robot before the white background.
    return np.nonzero((image < 255).any(-1))[1].mean()

  pixels_per_meter = 32 / (2 * np.tan(np.radians(30)))
  way = reference.position()[0] * pixels_per_meter
  left_behind = reference.image(target=(0, 0, 0))
  assert abs(way) > 5
  assert column(left_behind) - column(obs['image']) == pytest.approx(way, abs=1)
  reference.close()


def beyond(env):
  """How far the robot lies outside the picture, 0 for a robot within it."""
  bullet = env.unwrapped
  robot, physics = bullet._env.robot, bullet._env._p
  motor = robot.ordered_joints[0]
  body = motor.bodies[motor.bodyIndex]
  corners = np.array([
      corner for link in range(-1, physics.getNumJoints(body))
      for corner in physics.getAABB(body, link)])
  x, y, z = (corners - bullet._target()).T
  edge = (y + bullet._distance) * np.tan(np.radians(30))
  return max(0, (np.abs([x, z]) - edge).max())


@pytest.mark.parametrize('robot', [
    'Walker2D', 'Hopper', 'HalfCheetah', 'Ant', 'Humanoid',
    'HumanoidFlagrun'])
def test_whole_camera_shows_the_whole_robot(make, robot):
  env = make(f'{robot}BulletEnv-v0', camera='whole')
  env.reset(seed=0)
  for action in actions(env, 60):
    assert beyond(env) == 0
    env.step(action)
  published = make(f'{robot}BulletEnv-v0')
  published.reset(seed=0)
  assert (beyond(published) > 0.05) == (robot != 'HalfCheetah')


@pytest.mark.parametrize('task', [
    'ReacherBulletEnv-v0', 'PusherBulletEnv-v0', 'ThrowerBulletEnv-v0',
    'InvertedPendulumBulletEnv-v0'])
def test_whole_camera_leaves_what_stands_still(make, task):
  images = [
      make(task, camera=camera).reset(seed=0)[0]['image']
      for camera in ('published', 'whole')]
  assert np.array_equal(*images)


def test_camera_of_the_pendulum_stands_still(make):
  env = make('InvertedPendulumSwingupBulletEnv-v0')
  start = env.reset(seed=0)[0]['image']
  for _ in range(8):
    end = env.step(np.ones(1, np.float32))[0]['image']
  rows = slice(29, 31)  # The upper part of the cart, above the pole.

  def column(image):
    return np.nonzero((image[rows] < 255).any(-1))[1].mean()

  assert column(end) > column(start) + 3


def test_termination_is_ignored_unless_asked_for(make):
  falls = make('HopperBulletEnv-v0', termination=True)
  steps = play(falls, 0, 200)
  assert len(steps) < 60
  assert steps[-1][2] == 0.0 and steps[-1][4] and not steps[-1][5]
  env = make('HopperBulletEnv-v0', time_limit=400)
  steps = play(env, 0, 1000)
  assert len(steps) == 1 + 200
  assert all(np.isfinite(step[1]) and step[2] == 1.0 for step in steps)
  assert not steps[-1][4] and steps[-1][5]
  # A robot that lies pays for it, which is the published setting.
  assert np.mean([step[1] for step in steps[100:]]) < -1


def test_registered_time_limit_applies_if_asked_for(make):
  settings = dict(action_repeat=10, time_limit=300)
  env = make('ReacherBulletEnv-v0', **settings)
  assert len(play(env, 0, 1000)) == 1 + 30
  env = make('ReacherBulletEnv-v0', own_limit=True, **settings)
  steps = play(env, 0, 1000)
  assert len(steps) == 1 + 15
  assert steps[-1][5] and not steps[-1][4] and steps[-1][2] == 1.0
  env = make(
      'ReacherBulletEnv-v0', own_limit=True, action_repeat=10, time_limit=100)
  assert len(play(env, 0, 1000)) == 1 + 10


def test_limit_of_a_gymnasium_id_applies(make):
  env = make('WrappersLimited-v0', action_repeat=1, time_limit=100)
  steps = play(env, 0, 1000)
  assert len(steps) == 1 + 3 and steps[-1][5] and steps[-1][2] == 1.0


def test_hundred_resets_do_not_grow(make):
  env = make('AntBulletEnv-v0')

  def usage():
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    connected = sum(
        pybullet.getConnectionInfo(client)['isConnected']
        for client in range(50))
    return pages * 4096 / 2 ** 20, len(os.listdir('/proc/self/fd')), connected

  def episodes(amount):
    for seed in range(amount):
      env.reset(seed=seed)
      env.step(np.ones(8, np.float32))

  episodes(20)
  memory, files, clients = usage()
  episodes(100)
  later = usage()
  assert later[0] < memory + 10
  assert later[1:] == (files, clients)
  env.close()
  assert usage()[2] == clients - 1


@pytest.mark.usefixtures('opengl')
class TestControl:

  @pytest.mark.parametrize('task,size', [
      ('dmc_walker_walk', 6), ('dmc_cartpole_swingup', 1),
      ('dmc_cup_catch', 2), ('dmc_quadruped_walk', 12)])
  def test_interface(self, make, task, size):
    env = make(task, render='fast')
    assert env.action_space == gym.spaces.Box(-1, 1, (size,))
    check_interface(env)
    first = play(env, 5, 5)
    play(env, 6, 5, action_seed=1)
    assert play(env, 5, 5) == first
    assert play(make(task, render='fast'), 5, 5) == first

  @pytest.mark.parametrize('domain,task,camera', [
      ('walker', 'walk', 0), ('cartpole', 'balance', 0),
      ('quadruped', 'run', 2)])
  def test_default_is_the_stock_image(self, make, domain, task, camera):
    from dm_control import suite
    env = make(f'dmc_{domain}_{task}')
    obs, _ = env.reset(seed=3)
    stock = suite.load(domain, task, task_kwargs={'random': 3})
    stock.reset()
    spec = stock.action_spec()
    for action in actions(env, 4):
      obs, reward, *_ = env.step(action)
      # Some bounds of the quadruped are not -1 and 1.
      action = np.interp(action, [-1, 1], [0, 1])
      action = spec.minimum + action * (spec.maximum - spec.minimum)
      expected = stock.step(action).reward + stock.step(action).reward
      assert reward == pytest.approx(expected, abs=1e-6)
      image = stock.physics.render(64, 64, camera_id=camera)
      assert np.array_equal(obs['image'], image)

  def test_fast_images_are_four_times_as_fast(self, make):
    envs = [make('dmc_walker_walk', render=r) for r in ('default', 'fast')]
    images = [env.reset(seed=0)[0]['image'] for env in envs]
    # Simpler, not empty: the robot is where it was.
    assert np.abs(np.subtract(*images, dtype=float)).mean() < 20
    seconds = [[], []]
    for _ in range(10):
      for env, measured in zip(envs, seconds):
        start = time.perf_counter()
        env.render_frame(64, 64)
        measured.append(time.perf_counter() - start)
    # Other programs only ever make it slower.
    default, fast = map(min, seconds)
    if default < 0.005:
      pytest.skip('a GPU draws here')
    assert default / fast > 4

  def test_one_camera_draws_what_new_ones_would(self, make):
    env = make('dmc_cup_catch', render='fast').unwrapped
    cameras = []
    for seed, size in ((0, 64), (0, 64), (1, 64), (1, 96), (1, 400), (2, 64)):
      env.reset(seed=seed)
      env.step(np.ones(2))
      image = env.picture(size, size)
      stock = env._env.physics.render(
          size, size, camera_id=0,
          render_flag_overrides={'shadow': False, 'reflection': False})
      assert np.array_equal(image, stock)
      cameras.append(env._camera[1])
    assert cameras[0] is cameras[1] is cameras[2]

  def test_pictures_of_any_size(self, make):
    env = make('dmc_walker_walk')
    small = env.reset(seed=0)[0]['image']
    large = env.render_frame(640, 800)
    assert large.shape == (640, 800, 3)
    middle = large[:, 80:-80].reshape(64, 10, 64, 10, 3).mean((1, 3))
    assert np.abs(middle - small).mean() < 8
    assert np.array_equal(env.reset(seed=0)[0]['image'], small)

  def test_ends(self, make):
    env = make('dmc_cartpole_balance', action_repeat=50, time_limit=5000)
    steps = play(env, 0, 1000)
    assert len(steps) == 1 + 20  # Its own limit is 1,000 steps.
    assert steps[-1][2] == 1.0 and not steps[-1][4] and steps[-1][5]
    env.unwrapped._env.task.get_termination = lambda physics: 0.0
    steps = play(env, 0, 1000)
    assert len(steps) == 2
    assert steps[-1][2] == 0.0 and steps[-1][4] and not steps[-1][5]

  def test_beside_tensorflow(self):
    script = (
        'from common import backend\nimport wrappers, numpy as np\n'
        'env = wrappers.make_env("dmc_walker_walk")\n'
        'a = env.reset(seed=0)[0]["image"]\n'
        'b = env.step(np.ones(6, "f"))[0]["image"]\n'
        'backend.tf.linalg.matmul(np.ones([9, 9]), np.ones([9, 9]))\n'
        'print((a != b).any())\n')
    # Nothing else is printed, and nothing crashes.
    assert run_script(script) == (0, 'True\n', '')


@pytest.mark.parametrize('chosen', ['nonsense', 'osmesa'])
def test_opengl_that_does_not_work_is_one_line(chosen):
  script = (
      'import sys\n'
      'if len(sys.argv) > 1:  # As if it were not installed.\n'
      '  sys.modules["OpenGL.GL"] = None\n'
      'from common import terminal\nimport wrappers\n'
      'terminal.run(lambda argv: wrappers.make_env("dmc_walker_walk"))\n')
  code, out, err = run_script(
      script, 'hide', env={**os.environ, 'MUJOCO_GL': chosen})
  assert code == 2 and out == ''
  assert err.count('\n') == 1 and err.startswith('error: dm_control')
  assert f'MUJOCO_GL={chosen}' in err
  assert 'apt-get install --no-install-recommends libegl1 libgl1' in err


def test_opengl_that_is_missing_names_the_package(monkeypatch):
  monkeypatch.delenv('MUJOCO_GL', raising=False)
  monkeypatch.setattr(control, '_PROBE', 'raise SystemExit(1)')
  with pytest.raises(terminal.UserError, match='install .* libegl1 libgl1'):
    control.choose_opengl()
  assert 'MUJOCO_GL' not in os.environ


def test_atari(make):
  env = make('atari_pong', action_repeat=4)
  assert isinstance(env.action_space, wrappers.OneHot)
  assert env.action_space.shape == (6,)
  check_interface(env)
  first = play(env, 5, 60)
  play(env, 6, 60, action_seed=1)
  assert play(env, 5, 60) == first
  assert play(make('atari_pong', action_repeat=4), 5, 60) == first
  env = make('atari_pong', action_repeat=4, time_limit=100000)
  steps = play(env, 0, 5000)
  assert steps[-1][4] and steps[-1][2] == 0.0  # A whole game, ...
  assert sum(step[3] for step in steps[1:]) < -15  # ... which is lost.


def test_atari_episode_ends_with_a_life(make):
  settings = dict(action_repeat=4, time_limit=100000)
  game = make('atari_breakout', **settings)
  life = make('atari_breakout', end_of_life=True, **settings)
  whole, short = play(game, 0, 5000), play(life, 0, 5000)
  assert short[-1][4] and short[-1][2] == 0.0
  assert len(short) < len(whole)
  assert short[:-1] == whole[:len(short) - 1]  # It ends within a decision.
  # The next episode is a new game, whatever came before.
  again = play(life, 7, 50)
  assert play(make('atari_breakout', end_of_life=True, **settings), 7, 50) == (
      again)
  assert life.unwrapped._ale.lives() >= 4


def test_atari_noops_follow_the_seed(make):
  env = make('atari_pong', noops=30, action_repeat=4)

  def frames(seed):
    image = env.reset(seed=seed)[0]['image']
    return env.unwrapped._ale.getEpisodeFrameNumber(), image

  begun = {seed: frames(seed) for seed in range(20)}
  counts = [count for count, _ in begun.values()]
  assert min(counts) >= 1 and max(counts) <= 30 and len(set(counts)) > 8
  for seed in (3, 0):
    count, image = frames(seed)
    assert count == begun[seed][0]
    assert np.array_equal(image, begun[seed][1])
  plain = make('atari_pong', action_repeat=4)
  plain.reset(seed=0)
  assert plain.unwrapped._ale.getEpisodeFrameNumber() == 0


def test_one_hot_actions(make):
  env = make('atari_pong', action_dim=9)
  assert isinstance(env.action_space, wrappers.OneHot)
  env.action_space.seed(0)
  samples = np.stack([env.action_space.sample() for _ in range(200)])
  assert samples.shape == (200, 9)
  assert (np.sort(samples, -1) == [0] * 8 + [1]).all()
  assert (samples.sum(0) > 5).all()
  inner = env
  while not isinstance(inner, wrappers.OneHotActions):
    inner = inner.env
  eye = np.eye(9, dtype=np.float32)
  assert [inner.action(env.env.env.action(row)) for row in eye] == [
      0, 1, 2, 3, 4, 5, 0, 0, 0]


def test_action_repeat_stops_at_the_end(make):
  env = make('test_wrappers:Toy', action_repeat=2)
  env.reset()
  toy = env.unwrapped
  rewards, ends = zip(*[env.step(np.zeros(2))[1:3] for _ in range(3)])
  assert rewards == (2.0, 2.0, 1.0)
  assert ends == (False, False, True)
  assert toy.count == 5


def test_one_image_per_decision(make):
  env = make('test_wrappers:Toy', action_repeat=4)
  before = env.unwrapped.drawn
  obs, _ = env.reset()
  assert (obs['image'] == 0).all()
  obs, *_ = env.step(np.zeros(2))
  assert (obs['image'] == 4).all()
  assert env.unwrapped.drawn == before + 2


@pytest.mark.parametrize('repeat,limit,decisions', [
    (1, 3, 3), (2, 4, 2), (2, 3, 1), (3, 4, 1)])
def test_time_limit_counts_environment_steps(make, repeat, limit, decisions):
  env = make('test_wrappers:Toy', action_repeat=repeat, time_limit=limit)
  steps = play(env, 0, 100)
  assert len(steps) == 1 + decisions
  assert steps[-1][5] and steps[-1][2] == 1.0


def test_actions_are_normalised(make):
  env = make('test_wrappers:Toy')
  assert np.array_equal(env.action_space.low, np.float32([-1, -np.inf]))
  assert np.array_equal(env.action_space.high, np.float32([1, np.inf]))
  env.reset()
  for action, expected in [
      ([-1, 7], [0, 7]), ([1, -3], [10, -3]), ([0.5, 0], [7.5, 0])]:
    env.step(np.float32(action))
    assert np.allclose(env.unwrapped.received, expected)
    env.reset()


def test_padded_actions(make):
  wide, narrow = make('HopperBulletEnv-v0', action_dim=8), make(
      'HopperBulletEnv-v0')
  assert wide.action_space == gym.spaces.Box(-1, 1, (8,))
  wide.reset(seed=0), narrow.reset(seed=0)
  for action in actions(wide, 5):
    padded, alone = wide.step(action), narrow.step(action[:3])
    assert padded[1] == alone[1]
    assert np.array_equal(padded[0]['image'], alone[0]['image'])
  with pytest.raises(terminal.UserError, match='action_dim 2'):
    make('HopperBulletEnv-v0', action_dim=2)


@pytest.mark.parametrize('task,name', [
    ('NanReward', 'reward'), ('InfObservation', 'observation')])
def test_bad_numbers_are_found_where_they_enter(make, task, name):
  env = make(f'test_wrappers:{task}', action_repeat=1)
  env.reset()
  env.step(np.zeros(2))
  with pytest.raises(FloatingPointError, match=name):
    env.step(np.zeros(2))


@pytest.mark.parametrize('value, repeat', [(1e39, 1), (3e38, 2), (-1e39, 1)])
def test_rewards_that_32_bits_do_not_hold_are_bad_numbers(
    make, monkeypatch, value, repeat):
  """Also where only their sum over the steps of an action is so large."""
  env = make('test_wrappers:Toy', action_repeat=repeat)
  env.reset(seed=0)
  monkeypatch.setattr(
      Toy, 'step', lambda self, action: (np.zeros(1), value, False, False, {}))
  with pytest.raises(FloatingPointError, match='reward that 32 bits do not'):
    env.step(np.zeros(2))


@pytest.mark.parametrize('task', [
    'WrappersToy-v0', 'test_wrappers:WrappersToy-v0', 'test_wrappers:Toy'])
def test_own_environments(make, task):
  wrappers.check_task(task)
  env = make(task, action_repeat=1)
  obs, _ = env.reset(seed=0)
  assert obs['image'].shape == (64, 64, 3)
  assert (env.step(np.zeros(2))[0]['image'] == 1).all()
  assert env.render_frame(30, 50).shape == (30, 50, 3)


def test_own_environment_from_the_working_directory(
    make, tmp_path, monkeypatch):
  (tmp_path / 'cwd_module.py').write_text(
      'import test_wrappers\ndef create():\n  return test_wrappers.Toy()\n')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', sys.path[:])
  assert make('cwd_module:create').reset()[1] == {'discount': 1.0}


@pytest.mark.parametrize('task,message', [
    ('HoperBulletEnv-v0', 'HopperBulletEnv-v0'),
    pytest.param(
        'hopperbulletenv-v0', 'HopperBulletEnv-v0', marks=pytest.mark.bullet),
    ('dmc_walker_wlk', 'dmc_walker_walk'),
    ('dmc_ball_in_cup', 'dmc_ball_in_cup_catch'),
    ('walker_walk', 'dmc_walker_walk'),
    ('atari_pnog', 'atari_pong'),
    ('zzzzzzzzzzzzzzzzzzz', 'near matches: none'),
    ('', 'unknown task'),
    ('no_such_module:make', "cannot import 'no_such_module'"),
    ('test_wrappers:Tyo', 'near matches: Toy'),
    (':make', 'cannot import'),
])
def test_unknown_tasks(task, message):
  if 'dmc' in task + message:
    try:
      control.tasks()
    except terminal.UserError as error:
      pytest.skip(str(error))
  for function in (wrappers.check_task, wrappers.make_env):
    with pytest.raises(terminal.UserError) as caught:
      function(task)
    assert message in str(caught.value)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('task,message', [
    ('test_wrappers:not_an_env', 'must return a gymnasium.Env'),
    ('test_wrappers:Blind', 'rgb_array'),
    ('test_wrappers:Strange', 'only Box and Discrete'),
])
def test_own_environments_that_do_not_fit(task, message):
  with pytest.raises(terminal.UserError, match=message):
    wrappers.make_env(task).reset()


@pytest.mark.parametrize('settings,message', [
    (dict(action_repeat=0), 'action_repeat is 0'),
    (dict(time_limit=1), 'time_limit 1'),
    (dict(render='slow'), "render is 'slow'"),
    (dict(camera='side'), "camera is 'side'"),
])
def test_settings_that_make_no_sense(settings, message):
  with pytest.raises(terminal.UserError, match=message):
    wrappers.make_env('HopperBulletEnv-v0', **settings)


@pytest.mark.bullet
def test_libraries_are_quiet_and_small():
  script = (
      'import sys, wrappers, numpy as np\n'
      'for task in sys.argv[1:]:\n'
      '  env = wrappers.make_env(task)\n'
      '  env.reset(seed=0)\n'
      '  env.step(env.action_space.sample())\n'
      '  env.close()\n'
      'print("tensorflow" in sys.modules)\n')
  tasks = ['HopperBulletEnv-v0', 'ThrowerBulletEnv-v0', 'atari_pong']
  assert run_script(script, *tasks) == (0, 'False\n', '')


@pytest.mark.usefixtures('opengl')
def test_control_is_quiet():
  script = (
      'import wrappers\n'
      'env = wrappers.make_env("dmc_cheetah_run")\n'
      'env.reset(seed=0)\n')
  assert run_script(script) == (0, '', '')


def run_script(script, *args, env=None):
  done = subprocess.run(
      [sys.executable, '-c', script, *args], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=120)
  return done.returncode, done.stdout, done.stderr
