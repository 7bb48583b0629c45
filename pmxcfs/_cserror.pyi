__pyx_capi__: dict[str, object]  # the other extensions use this one through its C interface only
