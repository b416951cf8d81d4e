"""The decoder's operations on a GPU, one file a kernel; `ops.py` has them under the names of kernels/reference.py."""
