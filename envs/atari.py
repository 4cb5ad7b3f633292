"""Games of the Arcade Learning Environment: atari_pong and others."""

import gymnasium as gym
import numpy as np

from envs import pictures


class Atari(gym.Env):
  """An Atari game with sticky actions (Machado et al. 2018)."""

  def __init__(self, task):
    import ale_py
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    self._game = ale_py.roms.get_rom_path(task.removeprefix('atari_'))
    self._ale = ale_py.ALEInterface()
    self._ale.setFloat('repeat_action_probability', 0.25)
    self._ale.loadROM(self._game)
    self._actions = self._ale.getMinimalActionSet()
    self._before = self._ale.getScreenRGB()
    self.observation_space = gym.spaces.Dict()
    self.action_space = gym.spaces.Discrete(len(self._actions))

  def reset(self, *, seed=None, options=None):
    if seed is not None:
      # A seed counts from the next time that the game is loaded.
      self._ale.setInt('random_seed', seed)
      self._ale.loadROM(self._game)
    self._ale.reset_game()
    self._before = self._ale.getScreenRGB()
    return {}, {}

  def step(self, action):
    self._before = self._ale.getScreenRGB()
    reward = self._ale.act(self._actions[action])
    return {}, reward, self._ale.game_over(), False, {}

  def picture(self, height, width):
    """Image uint8 [height, width, 3] of the game."""
    # Sprites that flicker are drawn in one of two frames.
    pixels = np.maximum(self._before, self._ale.getScreenRGB())
    return pictures.resize(pixels, height, width)


def tasks():
  """Names of all games."""
  from ale_py import roms
  return [f'atari_{name}' for name in roms.get_all_rom_ids()]
