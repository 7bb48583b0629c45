/*
 * Included ahead of each extension's C file, by setup.py.
 *
 * Cython calls this function wherever an exception leaves a compiled function. It is declared cold,
 * so the compiler moves the code that leads there, a fifth of all, away from the code that normally
 * runs. A request then touches fewer pages and cache lines.
 */
static void __Pyx_AddTraceback(const char *, int, int, const char *) __attribute__((cold, unused));
