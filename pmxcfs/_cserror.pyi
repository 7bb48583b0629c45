# Only for the other extensions: nothing of it is visible from Python.
