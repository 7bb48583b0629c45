__pyx_capi__: dict[str, object]  # the C interface, for cimport; nothing can be called from Python
