MODULES: frozenset[str]  # full names of the modules in this shared object
