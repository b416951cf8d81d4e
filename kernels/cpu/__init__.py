"""The decoder step in C++, compiled once per instruction set; ctypes calls it (library.py), compile.py builds it."""
