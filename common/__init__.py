"""Tools of every part of the program: flags, the terminal, files, TensorFlow."""
