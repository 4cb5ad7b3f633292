"""What every part of the program uses: flags, the terminal, files, TensorFlow."""
