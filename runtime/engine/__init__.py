"""Continuous batching over one flat ragged batch. numpy tables and plain ints; only model_runner knows a tensor library."""
