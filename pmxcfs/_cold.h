/*
 * Included ahead of each extension's C file, by setup.py.
 *
 * Cython calls this function on the way of every exception through compiled code. Declared cold, it
 * makes the compiler put these ways, half of all code, behind the rest, so that a request reads less
 * memory and fewer pages.
 */
static void __Pyx_AddTraceback(const char *, int, int, const char *) __attribute__((cold, unused));
