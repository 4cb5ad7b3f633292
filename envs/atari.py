"""Games of the Arcade Learning Environment: atari_pong and others."""

import gymnasium as gym
import numpy as np

from envs import pictures


class Atari(gym.Env):
  """An Atari game with sticky actions (Machado et al. 2018).

  Every reset begins a new game, after a lost life too, as in the public agent:
  an episode follows from its seed and its actions alone.
  """

  def __init__(self, task, end_of_life=False, noops=0):
    """Args:
      task: `atari_GAME`.
      end_of_life: Whether an episode terminates when a life is lost.
      noops: An episode begins with 1 to this many frames without an action,
        drawn from its seed; 0 for none.
    """
    import ale_py
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    self._game = ale_py.roms.get_rom_path(task.removeprefix('atari_'))
    self._ale = ale_py.ALEInterface()
    self._ale.setFloat('repeat_action_probability', 0.25)
    self._ale.loadROM(self._game)
    self._actions = self._ale.getMinimalActionSet()
    self._noop = ale_py.Action.NOOP
    self._noops = noops
    self._end_of_life = end_of_life
    self._lives = 0
    self._random = np.random.default_rng(0)
    self._before = self._ale.getScreenRGB()
    self.observation_space = gym.spaces.Dict()
    self.action_space = gym.spaces.Discrete(len(self._actions))

  def reset(self, *, seed=None, options=None):
    if seed is not None:
      # A seed counts from the next time that the game is loaded.
      self._ale.setInt('random_seed', seed)
      self._ale.loadROM(self._game)
      self._random = np.random.default_rng(seed)
    self._ale.reset_game()
    if self._noops:
      for _ in range(self._random.integers(1, self._noops + 1)):
        self._ale.act(self._noop)
    self._lives = self._ale.lives()
    self._before = self._ale.getScreenRGB()
    return {}, {}

  def step(self, action):
    self._before = self._ale.getScreenRGB()
    reward = self._ale.act(self._actions[action])
    lives = self._ale.lives()
    lost = self._end_of_life and lives < self._lives
    self._lives = lives
    return {}, reward, lost or self._ale.game_over(), False, {}

  def picture(self, height, width):
    """Image uint8 [height, width, 3] of the game."""
    # Sprites that flicker are drawn in one of two frames.
    pixels = np.maximum(self._before, self._ale.getScreenRGB())
    return pictures.resize(pixels, height, width)


def tasks():
  """Names of all games."""
  from ale_py import roms
  return [f'atari_{name}' for name in roms.get_all_rom_ids()]
